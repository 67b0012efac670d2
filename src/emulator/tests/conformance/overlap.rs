//! Programmatic launch: a kernel that may begin before the one before it has ended, and what it touches too early.

use super::*;

/// `first` writes `x` from `y`, after `older` has written `w`; `second` has `body` between its addresses and its end: of
/// `x` in `%d1`, `y` in `%d2`, `w` in `%d3` and `out` in `%d0`, 4 bytes a thread.
fn file(body: &str) -> String {
    let head = |name: &str| {
        format!(
            ".visible .entry {name}(.param .u64 out, .param .u64 x, .param .u64 y, .param .u64 w)\n{{\n\
             .reg .b32 %r<9>; .reg .b64 %d<9>; .reg .pred %p<4>; .shared .align 128 .b8 s[256];\n\
             .shared .align 8 .b64 b;\nmov.u32 %r0, %ctaid.x;\nmov.u32 %r1, %ntid.x;\nmov.u32 %r2, %tid.x;\n\
             mad.lo.u32 %r3, %r0, %r1, %r2;\nmul.wide.u32 %d4, %r3, 4;\nmov.u32 %r5, 0;\n\
             setp.eq.u32 %p0, %r2, 0;\nld.param.u64 %d0, [out];\nld.param.u64 %d1, [x];\n\
             ld.param.u64 %d2, [y];\nld.param.u64 %d3, [w];\nadd.u64 %d0, %d0, %d4;\nadd.u64 %d1, %d1, %d4;\n\
             add.u64 %d2, %d2, %d4;\nadd.u64 %d3, %d3, %d4;\n"
        )
    };
    let (older, first, second) = (head("older"), head("first"), head("second"));
    format!(
        ".version 9.0\n.target sm_90a\n.address_size 64\n{older}st.global.u32 [%d3], 3;\nret;\n}}\n\
         {first}griddepcontrol.launch_dependents;\nld.global.u32 %r4, [%d2];\nadd.u32 %r4, %r4, %r3;\n\
         st.global.u32 [%d1], %r4;\nret;\n}}\n{second}{body}\nst.global.u32 [%d0], %r5;\nret;\n}}\n"
    )
}

const BLOCKS: u32 = 20;
const BYTES: usize = 4 * 64 * BLOCKS as usize;

/// What stands between the two kernels.
#[derive(Clone, Copy, PartialEq)]
enum Between {
    Nothing,
    Read,
    Write,
    Fill,
}

fn ran(body: &str, how: (u64, bool, usize), between: Between) -> Result<Vec<i32>> {
    ran_file(&file(body), how, between)
}

fn ran_file(text: &str, (seed, overlap, workers): (u64, bool, usize), between: Between) -> Result<Vec<i32>> {
    let mut emulator = Emulator::new(Module::parse("grids.ptx", text)?)?;
    let arrays = ["out", "x", "y", "w"].map(|name| emulator.allocate(name, BYTES));
    let other = emulator.allocate("other", 16);
    emulator.write(arrays[2], &[0; BYTES])?;
    let values = arrays.map(u64::to_le_bytes);
    let args: Vec<&[u8]> = values.iter().map(|v| &v[..]).collect();
    let launch = Launch { seed, workers, ..line(BLOCKS, 64) };
    emulator.launch("older", &launch, &args)?;
    emulator.launch("first", &Launch { overlap, ..launch }, &args)?;
    match between {
        Between::Nothing => {}
        Between::Read => drop(emulator.read(arrays[3], 16)?),
        Between::Write => emulator.write(other, &[0; 16])?,
        Between::Fill => emulator.fill(other, 0, 16)?,
    }
    emulator.launch("second", &Launch { overlap, ..launch }, &args)?;
    Ok(i32s(&emulator.read(arrays[0], BYTES)?))
}

fn numbers(f: impl Fn(i32) -> i32) -> Vec<i32> {
    (0..64 * BLOCKS as i32).map(f).collect()
}

#[test]
fn a_wait_cannot_be_left_out() {
    let text = file("griddepcontrol.wait;\nld.global.u32 %r5, [%d1];");
    let run = |text: &str, seed| {
        ran_file(text, (seed, true, 0), Between::Nothing).map(|out| vec![bytes_of(&out).to_vec()])
    };
    excused(survivors(&text, "second", run), 1, &[], "second");
}

/// Right under every seed.
fn gives(body: &str, f: impl Fn(i32) -> i32 + Copy) {
    for seed in SEEDS {
        let out = ran(body, (seed, true, 0), Between::Nothing);
        assert!(out.unwrap_or_else(|e| panic!("{body}: seed {seed}: {e}")) == numbers(f), "{body}");
    }
}

/// Reported under odd seeds, the same by any number of cores; a launch that does not overlap is clean.
fn found(body: &str, words: &[&str]) {
    for seed in SEEDS {
        if seed & 1 == 0 {
            ran(body, (seed, true, 0), Between::Nothing).unwrap_or_else(|e| panic!("{body}: {e}"));
            continue;
        }
        let what = ran(body, (seed, true, 1), Between::Nothing).map(|_| ()).expect_err(body).to_string();
        let all = ["race in second at grids.ptx:", "the kernel before it", "griddepcontrol.wait", "in first"];
        assert!(all.iter().chain(words).all(|w| what.contains(w)), "{body}: {what}");
        assert_eq!(ran(body, (seed, true, 4), Between::Nothing).unwrap_err().to_string(), what);
        ran(body, (seed, false, 0), Between::Nothing).unwrap_or_else(|e| panic!("{body}: {e}"));
        for between in [Between::Read, Between::Write, Between::Fill] {
            ran(body, (seed, true, 0), between).unwrap_or_else(|e| panic!("{body}: {e}"));
        }
    }
}

const WAIT: &str = "griddepcontrol.wait;";

#[test]
fn what_the_kernel_before_touches_is_left_alone_until_the_wait() {
    let read = "ld.global.u32 %r5, [%d1];";
    found(read, &["it reads x+", "first, the kernel before it, writes"]);
    found(&format!("{read}\n{WAIT}"), &["it reads x+"]);
    gives(&format!("{WAIT}\n{read}"), |i| i);
    found("st.global.u32 [%d1], %r5;", &["it writes x+", "the kernel before it, writes"]);
    gives(&format!("{WAIT}\nst.global.u32 [%d1], 5;\n{read}"), |_| 5);
    found("st.global.u32 [%d2], %r5;", &["it writes y+", "the kernel before it, reads"]);
    gives(&format!("{WAIT}\nst.global.u32 [%d2], 5;"), |_| 0);
    found("red.global.add.u32 [%d1], 1;", &["it reads x+"]);
    gives(&format!("{WAIT}\nred.global.add.u32 [%d1], 1;\n{read}"), |i| i + 1);
    // One byte of what it wrote, at another place and width.
    found("ld.global.u8 %r5, [%d1+1];", &["it reads x+"]);
}

#[test]
fn the_rest_may_be_touched_before_the_wait() {
    // What both read, what a kernel before that one wrote, and what is one's own.
    gives("ld.global.u32 %r5, [%d2];", |_| 0);
    gives("ld.global.u32 %r5, [%d3];", |_| 3);
    gives(
        &format!("st.global.u32 [%d0], 7;\nld.global.u32 %r6, [%d2];\n{WAIT}\nld.global.u32 %r5, [%d1];"),
        |i| i,
    );
    gives("griddepcontrol.launch_dependents;", |_| 0);
}

#[test]
fn a_wait_is_for_those_that_it_orders() {
    let read = "ld.global.u32 %r5, [%d1];";
    for order in ["bar.sync 0;", "barrier.cluster.arrive;\nbarrier.cluster.wait;"] {
        gives(&format!("@%p0 {WAIT}\n{order}\n{read}"), |i| i);
    }
    // Nobody tells the other threads.
    found(&format!("@%p0 {WAIT}\n{read}"), &["it reads x+"]);
    found(&format!("bar.sync 0;\n@%p0 {WAIT}\n{read}"), &["it reads x+"]);
    gives(&format!("@%p0 {WAIT}\n@%p0 {read}"), |i| if i % 64 == 0 { i } else { 0 });
}

#[test]
fn copies_beside_the_warps_are_no_exception() {
    let copy = "mov.u32 %r6, s;\nmad.lo.u32 %r6, %r2, 4, %r6;\ncp.async.ca.shared.global [%r6], [%d1], 4;\n\
                cp.async.wait_all;\nld.shared.u32 %r5, [%r6];";
    found(copy, &["it reads x+"]);
    gives(&format!("{WAIT}\n{copy}"), |i| i);
    let load = "@%p0 mbarrier.init.shared.b64 [b], 1;\n@%p0 fence.mbarrier_init.release.cluster;\nbar.sync 0;\n\
                @!%p0 bra W;\nWAITS\nmbarrier.arrive.expect_tx.shared.b64 _, [b], 256;\n\
                cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [s], [%d1], 256, [b];\nW:\n\
                mbarrier.try_wait.parity.shared.b64 %p1, [b], 0;\n@!%p1 bra W;\nmov.u32 %r6, s;\n\
                mad.lo.u32 %r6, %r2, 4, %r6;\nld.shared.u32 %r5, [%r6];";
    found(&load.replace("WAITS", ""), &["it reads x+"]);
    // Others hear of it by the mbarrier.
    gives(&load.replace("WAITS", WAIT), |i| i);
    let behind = load.replace("WAITS", WAIT) + "\nst.global.u32 [%d1], %r5;";
    gives(&behind, |i| i);
    let store = "st.shared.u32 [s], 9;\nfence.proxy.async;\nWAITS\n\
                 cp.async.bulk.global.shared::cta.bulk_group [%d1], [s], 16;\ncp.async.bulk.commit_group;\n\
                 cp.async.bulk.wait_group 0;";
    let store = format!(
        "mov.u32 %r6, s;\n@!%p0 bra E;\nst.shared.v4.u32 [%r6], {{%r5, %r5, %r5, %r5}};\n{store}\nE:"
    );
    found(&store.replace("WAITS", ""), &["it writes x+"]);
    gives(&store.replace("WAITS", WAIT), |_| 0);
}
