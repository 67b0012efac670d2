//! Blocks of a grid in different chunks: what they read of each other's.

use super::{Arg, Launch, line, run};

/// `mate`: block b writes element b; from block `from` on it reads element b + shift.
const PTX: &str = "
.version 8.0
.target sm_80
.address_size 64
.visible .entry mate(.param .u64 p, .param .u32 shift, .param .u32 from)
{
    .reg .pred %q; .reg .b32 %r<9>; .reg .b64 %d<9>;
    ld.param.u64 %d0, [p]; ld.param.u32 %r0, [shift]; ld.param.u32 %r1, [from];
    mov.u32 %r2, %ctaid.x;
    mul.wide.u32 %d1, %r2, 4;
    add.u64 %d1, %d0, %d1;
    st.global.u32 [%d1], %r2;
    setp.lt.u32 %q, %r2, %r1;
    @%q ret;
    add.u32 %r3, %r2, %r0;
    mul.wide.s32 %d2, %r3, 4;
    add.u64 %d2, %d0, %d2;
    ld.global.u32 %r4, [%d2];
    ret;
}
";

/// The report, which is the same on any number of threads.
fn mate(shift: i32, from: i32, seed: u64) -> String {
    let on = |workers: usize| {
        let args = [Arg::Scratch(4 * 80), Arg::Int(shift), Arg::Int(from)];
        run(PTX, "mate", &Launch { workers, seed, ..line(40, 1) }, &args).map(|_| ()).unwrap_err().to_string()
    };
    let one = on(1);
    assert!(on(2) == one && on(8) == one, "{one}");
    one
}

/// Its own copy of memory has no value there, but the bug is that nothing orders the two.
#[test]
fn a_value_of_another_chunk_is_a_race() {
    let names = |what: &str, who: std::ops::Range<usize>| {
        who.into_iter().any(|b| what.contains(&format!("block ({b}, 0, 0)")))
    };
    for seed in 0..4 {
        let what = mate(20, 0, seed);
        let (it, other) = what.split_once("the other access: ").unwrap_or_else(|| panic!("{what}"));
        assert!(it.contains("race in mate") && it.contains("reads arg0+") && names(it, 0..8), "{what}");
        assert!(names(other, 20..28), "{what}");
        let what = mate(-20, 20, seed);
        let (it, other) = what.split_once("the other access: ").unwrap_or_else(|| panic!("{what}"));
        assert!(it.contains("race in mate") && names(it, 20..24) && names(other, 0..4), "{what}");
        let what = mate(40, 0, seed);
        assert!(what.contains("uninitialised: read of arg0+1") && !what.contains("other access"), "{what}");
    }
}
