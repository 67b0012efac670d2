//! Grids of many blocks: on any number of cores the same bits, the same counters, the same report.

use super::{
    Arg, BASICS, Counters, GEMM, Launch, Swizzle, asynchronous, bytes_of, f32s, i32s, line, noise, run,
};

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

/// Grids of several chunks, of blocks that have more than registers to themselves: what a chunk leaves is put together
/// right, whoever ran it.
#[test]
fn blocks_with_shared_memory_and_clusters() {
    let x = noise(384 * 320, 3);
    let tiles = Launch { grid: [10, 12, 1], block: [32, 8, 1], ..Launch::default() };
    let args = [Arg::Scratch(4 * x.len()), Arg::In(bytes_of(&x)), Arg::Int(320), Arg::Int(384)];
    let (out, _) = on_any(BASICS, "transpose_padded", &tiles, &args).unwrap();
    let turned = f32s(&out[0]);
    assert!((0..x.len()).all(|i| turned[i % 320 * 384 + i / 320] == x[i]));

    // Whole numbers: the order of the sums changes nothing.
    let (m, n, k) = (256, 320, 64);
    let whole = |n: usize, by: usize| (0..n).map(|i| (i * by % 11) as f32 - 5.0).collect::<Vec<f32>>();
    let (a, b) = (whole(m * k, 7), whole(n * k, 3));
    let short = |v: &[f32]| v.iter().map(|x| half::bf16::from_f32(*x)).collect::<Vec<_>>();
    let (short_a, short_b) = (short(&a), short(&b));
    let product = [
        Arg::Scratch(4 * m * n),
        Arg::In(bytes_of(&short_a)),
        Arg::In(bytes_of(&short_b)),
        Arg::Int(n as i32),
        Arg::Int(k as i32),
    ];
    let grid = Launch { grid: [n as u32 / 64, m as u32 / 64, 1], ..line(1, 128) };
    let (out, counters) = on_any(GEMM, "gemm", &grid, &product).unwrap();
    let sum = |i: usize| (0..k).map(|j| a[i / n * k + j] * b[i % n * k + j]).sum::<f32>();
    assert!(f32s(&out[0]).iter().enumerate().all(|(i, d)| *d == sum(i)));
    assert_eq!(counters.total.flops, 2 * (m * n * k) as u64);

    let x: Vec<i32> = (0..60 * 96).map(|i| i * 37 % 101).collect();
    let args = [Arg::Scratch(240), Arg::Scratch(240), Arg::In(bytes_of(&x))];
    let (out, _) = on_any(asynchronous::PTX, "cluster_sum", &line(60, 96), &args).unwrap();
    let sum = |block: usize| x[block * 96..(block + 1) * 96].iter().sum::<i32>();
    for (block, total) in i32s(&out[0]).into_iter().enumerate() {
        let ranks = (0..4).map(|r| sum(block / 4 * 4 + (block + r) % 4) * (r as i32 + 1));
        assert_eq!(total, ranks.sum::<i32>(), "block {block}");
    }
}

/// What the asynchronous proxy writes is put together too.
#[test]
fn blocks_whose_copies_store() {
    let (w, h) = (192, 320);
    let (x, zeros) = (noise(w * h, 2), vec![0u8; 4 * w * h]);
    let args = [
        Arg::Map(bytes_of(&x), asynchronous::plane(w as u64, h as u64, [32, 32], Swizzle::B128)),
        Arg::Map(&zeros, asynchronous::plane(h as u64, w as u64, [32, 32], Swizzle::None)),
        Arg::Int(w as i32 / 32),
        Arg::Int(h as i32 / 32),
    ];
    let (out, _) = on_any(asynchronous::PTX, "tma_transpose", &line(30, 160), &args).unwrap();
    let turned = f32s(&out[1]);
    assert!((0..w * h).all(|i| turned[i % w * h + i / w] == x[i]));
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
