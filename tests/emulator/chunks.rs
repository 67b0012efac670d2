//! Grids of many blocks: on any number of cores the same bits, the same counters, the same report.

use super::{Arg, BASICS, Counters, Launch, bytes_of, line, noise, run};

/// `cross`: thread 0 of block b writes b, or (`same`) b mod m, to element b mod m. `reach`: it reads element b and writes
/// b + m to element b + m. `ticket`: adds 1 to element 0. `beyond`: writes to element b, of m.
const PTX: &str = "
.version 8.0
.target sm_80
.address_size 64
.visible .entry cross(.param .u64 p, .param .u32 m, .param .u32 same)
{
    .reg .pred %q; .reg .b32 %r<6>; .reg .b64 %d<4>;
    ld.param.u64 %d0, [p]; ld.param.u32 %r0, [m]; ld.param.u32 %r1, [same];
    mov.u32 %r2, %ctaid.x;
    rem.u32 %r3, %r2, %r0;
    setp.ne.u32 %q, %r1, 0;
    selp.b32 %r4, %r3, %r2, %q;
    cvta.to.global.u64 %d1, %d0;
    mul.wide.u32 %d2, %r3, 4;
    add.u64 %d3, %d1, %d2;
    st.global.u32 [%d3], %r4;
    ret;
}
.visible .entry reach(.param .u64 p, .param .u32 m)
{
    .reg .b32 %r<4>; .reg .b64 %d<6>;
    ld.param.u64 %d0, [p]; ld.param.u32 %r0, [m];
    mov.u32 %r1, %ctaid.x;
    cvta.to.global.u64 %d1, %d0;
    mul.wide.u32 %d2, %r1, 4;
    add.u64 %d3, %d1, %d2;
    ld.global.u32 %r2, [%d3];
    add.u32 %r3, %r1, %r0;
    mul.wide.u32 %d4, %r3, 4;
    add.u64 %d5, %d1, %d4;
    st.global.u32 [%d5], %r3;
    ret;
}
.visible .entry ticket(.param .u64 p)
{
    .reg .b32 %r; .reg .b64 %d<2>;
    ld.param.u64 %d0, [p];
    cvta.to.global.u64 %d1, %d0;
    atom.global.add.u32 %r, [%d1], 1;
    ret;
}
.visible .entry beyond(.param .u64 p)
{
    .reg .b32 %r; .reg .b64 %d<4>;
    ld.param.u64 %d0, [p];
    mov.u32 %r, %ctaid.x;
    cvta.to.global.u64 %d1, %d0;
    mul.wide.u32 %d2, %r, 4;
    add.u64 %d3, %d1, %d2;
    st.global.u32 [%d3], %r;
    ret;
}
";

/// What a run gives, on one core; it must be the same on two and on eight.
fn on_any(
    ptx: &str,
    kernel: &str,
    launch: &Launch,
    args: &[Arg<'_>],
) -> Result<(Vec<Vec<u8>>, Counters), String> {
    let on = |workers: usize, seed: u64| {
        run(ptx, kernel, &Launch { workers, seed, ..*launch }, args).map_err(|e| e.to_string())
    };
    for seed in 0..4 {
        let one = on(1, seed);
        for workers in [2, 8] {
            assert!(one == on(workers, seed), "{kernel}: {workers} threads do otherwise under seed {seed}");
        }
    }
    on(1, 0)
}

#[test]
fn blocks_of_a_large_grid() {
    let (a, b) = (noise(10_000, 1), noise(10_000, 2));
    let args = [Arg::Scratch(40_000), Arg::In(bytes_of(&a)), Arg::In(bytes_of(&b)), Arg::Int(10_000)];
    let (arrays, counters) = on_any(BASICS, "vector_add", &line(157, 64), &args).unwrap();
    let sum: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
    assert_eq!(arrays[0], bytes_of(&sum));
    assert_eq!((counters.read, counters.written, counters.total.bytes), (80_000, 40_000, 120_000));
}

/// Blocks that are never on the machine together meet in memory.
#[test]
fn a_race_of_distant_blocks_is_found() {
    let cells = [0i32; 80];
    let cell = || Arg::In(bytes_of(&cells));
    let what = on_any(PTX, "cross", &line(40, 1), &[cell(), Arg::Int(20), Arg::Int(0)]).unwrap_err();
    assert!(what.contains("race in cross") && what.contains("writes arg0+0 "), "{what}");
    assert!(what.contains("block (20, 0, 0)") && what.contains("block (0, 0, 0)"), "{what}");
    on_any(PTX, "cross", &line(40, 1), &[cell(), Arg::Int(20), Arg::Int(1)]).unwrap();
    on_any(PTX, "cross", &line(40, 1), &[cell(), Arg::Int(40), Arg::Int(0)]).unwrap();

    let what = on_any(PTX, "reach", &line(40, 1), &[cell(), Arg::Int(20)]).unwrap_err();
    assert!(what.contains("race in reach") && what.contains("reads arg0+80 "), "{what}");
    on_any(PTX, "reach", &line(40, 1), &[cell(), Arg::Int(40)]).unwrap();
}

/// Atomics order blocks, so those run as one.
#[test]
fn atomics_of_distant_blocks_add_up() {
    let (arrays, _) = on_any(PTX, "ticket", &line(300, 32), &[Arg::In(&[0; 4])]).unwrap();
    assert_eq!(arrays[0], bytes_of(&[9600i32]));
}

/// The first of several findings, in the order of the blocks.
#[test]
fn the_first_finding_is_the_report() {
    let what = on_any(PTX, "beyond", &line(160, 1), &[Arg::Scratch(4 * 77)]).unwrap_err();
    let block = |b: usize| what.contains(&format!("block ({b}, 0, 0)"));
    assert!(what.contains("out of bounds") && (77..80).any(block), "{what}");
}
