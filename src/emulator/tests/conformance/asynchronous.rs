//! Clusters and bulk copies: whole kernels that are right, and each bug at its line with the same kernel without it.

use super::*;

pub const PTX: &str = include_str!("ptx/async_sm90.ptx");
pub const BUGS: &str = include_str!("ptx/async_bugs_sm90.ptx");

fn clusters(blocks: u32, threads: u32, size: u32) -> Launch {
    Launch { cluster: [size, 1, 1], ..line(blocks, threads) }
}

/// Floats in rows, by boxes of `tile` columns and rows.
pub fn plane(columns: u64, rows: u64, tile: [u32; 2], swizzle: Swizzle) -> TensorMap {
    TensorMap {
        element: Element::F32,
        address: 0,
        sizes: vec![columns, rows],
        strides: vec![4 * columns],
        tile: tile.to_vec(),
        steps: vec![1, 1],
        swizzle,
    }
}

#[test]
fn a_histogram_over_a_cluster() {
    let data: Vec<i32> = noise(3000, 1).iter().map(|v| (v * 90.0) as i32 + 60).collect();
    for size in [1, 2, 4] {
        let launch = Launch { shared: 4 * 128 / size as usize, ..clusters(8, 64, size) };
        let zeros = [0u8; 512];
        let per_block = 128 / size as i32;
        let args =
            [Arg::In(&zeros), Arg::Int(128), Arg::Int(per_block), Arg::In(bytes_of(&data)), Arg::Int(3000)];
        let (out, _) = run_all(PTX, "cluster_histogram", &launch, &args);
        let mut bins = vec![0; 128];
        data.iter().for_each(|d| bins[(*d).clamp(0, 127) as usize] += 1);
        assert_eq!(i32s(&out[0]), bins, "clusters of {size}");
    }
}

/// The special registers too; the cluster is the one that the kernel was compiled for.
#[test]
fn sums_through_other_blocks_memory() {
    let x: Vec<i32> = (0..8 * 96).map(|i| i * 37 % 101).collect();
    let args = [Arg::Scratch(32), Arg::Scratch(32), Arg::In(bytes_of(&x))];
    let (out, _) = run_all(PTX, "cluster_sum", &line(8, 96), &args);
    let sum = |block: usize| x[block * 96..(block + 1) * 96].iter().sum::<i32>();
    for block in 0..8 {
        let (cluster, rank) = (block / 4, block % 4);
        let total = (0..4).map(|r| sum(4 * cluster + (rank + r) % 4) * (r as i32 + 1)).sum::<i32>();
        assert_eq!(i32s(&out[0])[block], total);
        let places = [rank, 4, 3 - rank, 1, cluster, 2];
        let place = places.iter().rev().fold(0, |n, d| n * 10 + d);
        assert_eq!(i32s(&out[1])[block] as usize, place);
    }
}

#[test]
fn a_pipeline_of_boxes() {
    let (w, h) = (96, 160);
    let x = noise(w * h, 2);
    let zeros = vec![0u8; 4 * w * h];
    let args = [
        Arg::Map(bytes_of(&x), plane(w as u64, h as u64, [32, 32], Swizzle::B128)),
        Arg::Map(&zeros, plane(h as u64, w as u64, [32, 32], Swizzle::None)),
        Arg::Int(w as i32 / 32),
        Arg::Int(h as i32 / 32),
    ];
    let (out, counters) = run_all(PTX, "tma_transpose", &line(3, 160), &args);
    let out = f32s(&out[1]);
    assert!((0..w * h).all(|i| out[i % w * h + i / w] == x[i]));
    assert_eq!(counters.total.bytes, 2 * 4 * (w * h) as u64);
    assert_eq!(counters.total.sectors, 2 * 4 * (w * h) as u64 / 32);
}

#[test]
fn slices_for_all_blocks_of_a_cluster() {
    let rounds = 5;
    for size in [2, 4] {
        let x: Vec<f32> = noise(64 * size * rounds, 3).iter().map(|v| (v * 100.0).round()).collect();
        let args = [Arg::Scratch(256 * size), Arg::In(bytes_of(&x)), Arg::Int(rounds as i32)];
        let (out, _) = run_all(PTX, "multicast_sum", &clusters(size as u32, 64, size as u32), &args);
        for (i, got) in f32s(&out[0]).iter().enumerate() {
            let part = |round: usize, r: usize| x[(round * size + r) * 64 + i % 64] * (r + 1) as f32;
            let mut sum = 0.0;
            (0..rounds).for_each(|round| (0..size).for_each(|r| sum += part(round, r)));
            assert_eq!(*got, sum, "{i}");
        }
    }
}

#[test]
fn blocks_that_send_to_the_next() {
    let x: Vec<i32> = (0..64 * 4).collect();
    let (out, _) = run_all(PTX, "ring", &clusters(4, 64, 4), &[Arg::Scratch(1024), Arg::In(bytes_of(&x))]);
    for (i, got) in i32s(&out[0]).into_iter().enumerate() {
        let (before, t) = ((i / 64 + 3) % 4, i % 64);
        let word = [before as i32, 4, 7, 8][t % 4];
        assert_eq!(got, x[before * 64 + t] + 1000 * word + 100000 * (5 + before as i32 + 1));
    }
}

#[test]
fn bulk_copies_there_and_back() {
    let x: Vec<f32> = (0..1024).map(|i| (i * 31 % 64) as f32).collect();
    let sums = [1.0f32; 256];
    let args = [Arg::Scratch(4096), Arg::In(bytes_of(&sums)), Arg::In(bytes_of(&x))];
    let (out, counters) = bits_all(PTX, "bulk_double", &line(4, 256), &args);
    assert!(f32s(&out[0]).iter().zip(&x).all(|(y, x)| *y == 2.0 * x));
    let sum = |i: usize| 1.0 + (0..4).map(|b| 2.0 * x[b * 256 + i]).sum::<f32>();
    assert!(f32s(&out[1]).iter().enumerate().all(|(i, s)| *s == sum(i)));
    assert_eq!(counters.total.bytes, 3 * 4096);
}

#[test]
fn copies_that_an_mbarrier_awaits() {
    let x: Vec<i32> = (0..64 * 6).map(|i| i * i % 1009).collect();
    let args = [Arg::Scratch(256), Arg::In(bytes_of(&x)), Arg::Int(6)];
    let (out, _) = run_all(PTX, "copies_tracked", &line(1, 64), &args);
    for (t, sum) in i32s(&out[0]).into_iter().enumerate() {
        assert_eq!(sum, (0..6).map(|i| x[i * 64 + 63 - t]).sum::<i32>());
    }
}

/// A kernel with its bug is caught at its line, and the same without it is clean, under every seed.
fn find(kernel: &str, kind: &str, launch: Launch, args: &[Arg<'_>], words: &[&str]) {
    bugs::caught(BUGS, kernel, &launch, args, (kernel, kind), words);
    run_all(BUGS, &format!("{kernel}_right"), &launch, args);
}

fn numbers() -> Vec<u8> {
    bytes_of(&noise(128, 5)).to_vec()
}

#[test]
fn what_the_asynchronous_proxy_cannot_see() {
    let x = numbers();
    let map = || Arg::Map(&x[..256], plane(8, 8, [8, 8], Swizzle::None));
    let (fence, write) = ("fence.proxy.async.shared::cta is missing", "the write: async_bugs_sm90.cu:");
    let small = || [Arg::Scratch(256), Arg::In(&x[..256])];
    find("unfenced_store", "fence", line(1, 64), &small(), &[fence, write, "shared memory+"]);
    find("unfenced_box", "fence", line(1, 64), &[map(), Arg::In(&x[..256])], &[fence, write]);
    let global = "fence.proxy.async.global is missing";
    find(
        "unfenced_global",
        "fence",
        line(1, 64),
        &[Arg::Scratch(256), Arg::Scratch(256)],
        &[global, "arg0+0"],
    );
    let init = "fence.mbarrier_init.release.cluster is missing";
    find("unfenced_init", "fence", line(1, 64), &small(), &[init, "the mbarrier.init: async.cuh:"]);
    find("unfenced_init_box", "fence", line(1, 64), &[Arg::Scratch(256), map()], &[init]);
}

#[test]
fn bytes_of_a_copy_under_way() {
    let x = numbers();
    let args = |n: usize| [Arg::Scratch(n), Arg::In(&x)];
    find("read_in_flight", "race", line(1, 64), &args(256), &["shared memory+"]);
    find("others_waited", "race", line(1, 64), &args(256), &["shared memory+"]);
    // Early copies are there when it asks: only the late ones find out.
    let right = || run_all(BUGS, "no_loop_right", &line(1, 64), &args(256));
    assert_eq!(right().0[0], x[..256]);
    let late = run(BUGS, "no_loop", &line(1, 64), &args(256)).map(|_| ()).unwrap_err().to_string();
    assert!(bugs::names(&late, &bugs::planted("no_loop")) && late.starts_with("race in no_loop "), "{late}");
    assert!(late.contains("while a bulk copy to it is under way; wait for its mbarrier first"), "{late}");
    find("write_in_flight", "race", line(1, 64), &args(256), &["shared memory+"]);
    find("refilled_early", "race", line(1, 64), &args(256), &["shared memory+"]);
    find(
        "overwritten_source",
        "race",
        line(1, 64),
        &args(512),
        &["asynchronous, in a bulk group of block 0"],
    );
    let map = Arg::Map(&x[..256], plane(8, 8, [8, 8], Swizzle::None));
    find("overwritten_box", "race", line(1, 64), &[map, Arg::In(&x)], &["asynchronous"]);
    find("left_loading", "race", line(1, 64), &args(256), &["still in use", "which leaves without waiting"]);
    find("left_storing", "race", line(1, 64), &args(256), &["still in use", "which leaves without waiting"]);
}

#[test]
fn phases_that_never_end() {
    let x = numbers();
    let args = [Arg::Scratch(256), Arg::In(&x)];
    let few = [
        "deadlock: the mbarrier at shared memory+",
        "phase 0 (parity 0)",
        "128 bytes missing that were expected",
    ];
    find("too_few_bytes", "deadlock", line(1, 64), &args, &few);
    find("too_many_bytes", "deadlock", line(1, 64), &args, &["64 bytes more sent than expected"]);
    find("wrong_parity", "deadlock", line(1, 64), &args, &["phase 1 (parity 1)", "1 of 1 arrivals missing"]);
    find("missing_arrival", "deadlock", line(1, 64), &[Arg::Scratch(256)], &["1 of 64 arrivals missing"]);
}

#[test]
fn mbarriers_misused() {
    let x = numbers();
    let (out, args) = (|| [Arg::Scratch(256)], || [Arg::Scratch(256), Arg::In(&x)]);
    find(
        "many_arrivals",
        "barrier",
        line(1, 64),
        &out(),
        &["1 arrivals at shared memory+", "phase 0 lacks 0"],
    );
    find("many_at_once", "barrier", line(1, 64), &out(), &["65 arrivals at shared memory+", "lacks 64"]);
    let none = "holds none: it was not initialised, or was invalidated";
    find("never_begun", "barrier", line(1, 64), &out(), &[none]);
    find("ended", "barrier", line(1, 64), &args(), &[none]);
    find("begun_twice", "barrier", line(1, 64), &out(), &["is one in use; mbarrier.inval ends it"]);
    find("begun_again", "barrier", line(1, 64), &out(), &["is one in use"]);
    find("peeked", "access", line(1, 64), &[Arg::Scratch(512)], &["which is an mbarrier"]);
    find("crooked_barrier", "misaligned", line(1, 64), &out(), &["misaligned: an mbarrier"]);
    find(
        "crooked_load",
        "misaligned",
        line(1, 64),
        &args(),
        &["misaligned: a bulk copy", "a multiple of 16"],
    );
    let tight = [Arg::Scratch(256), Arg::In(&x[..256])];
    find("beyond_load", "out-of-bounds", line(1, 64), &tight, &["out of bounds", "arg1 (256 bytes)"]);
    // Some schedules begin it in time for all: then another warp's arrival is not ordered behind it.
    find("init_raced", "barrier or race", line(1, 64), &out(), &[]);
}

#[test]
fn blocks_of_a_cluster_that_do_not_agree() {
    let x = numbers();
    let (two, out) = (clusters(2, 32, 2), || [Arg::Scratch(256)]);
    let gone = ["shared memory"];
    find("left_early", "access or race", two, &out(), &gone);
    find("added_late", "access or race", two, &[Arg::Scratch(8)], &gone);
    find("peers_raced", "race", two, &out(), &["shared memory of rank"]);
    find("peer_not_begun", "uninitialised", two, &out(), &["shared memory of rank 1+"]);
    find("came_twice", "barrier", two, &out(), &["a second time without having waited"]);
    find("never_came", "barrier", two, &out(), &["without having come to it"]);
    find("one_stays_away", "deadlock", two, &out(), &["the cluster's barrier", "1 of 1 arrivals missing"]);
    let send = [Arg::Scratch(512), Arg::In(&x)];
    find(
        "own_bytes",
        "barrier",
        clusters(2, 64, 2),
        &send,
        &["mbarrier: it is rank", "the bytes go to rank"],
    );
    find("multicast_to_the_gone", "access or race", clusters(2, 64, 2), &send, &["rank 1"]);
    find(
        "many_ranks",
        "access",
        clusters(2, 64, 2),
        &send,
        &["multicast to ranks [0, 1, 2] of a cluster of 2"],
    );
}

#[test]
fn nothing_can_be_left_out() {
    let x = bytes_of(&noise(96 * 160, 4)).to_vec();
    let ints: Vec<u8> = (0..4 * 1024).map(|i| if i % 4 == 0 { (i / 4 % 100) as u8 } else { 0 }).collect();
    let (zeros, ones) = (vec![0u8; 4 * 96 * 160], bytes_of(&[1.0f32; 256]).to_vec());
    let none = |kernel: &str, launch: Launch, args: &[Arg<'_>], lines: usize| {
        excused(survivors_of(PTX, kernel, &launch, args), lines, &[], kernel);
    };
    let boxes = [
        Arg::Map(&x, plane(96, 160, [32, 32], Swizzle::B128)),
        Arg::Map(&zeros, plane(160, 96, [32, 32], Swizzle::None)),
        Arg::Int(3),
        Arg::Int(5),
    ];
    none("tma_transpose", line(2, 160), &boxes, 17);
    let slices = [Arg::Scratch(512), Arg::In(&x[..256 * 2 * 4]), Arg::Int(4)];
    none("multicast_sum", clusters(2, 64, 2), &slices, 12);
    none("ring", clusters(4, 64, 4), &[Arg::Scratch(1024), Arg::In(&ints[..1024])], 8);
    none("bulk_double", line(4, 256), &[Arg::Scratch(4096), Arg::In(&ones), Arg::In(&x[..4096])], 10);
    none("copies_tracked", line(1, 64), &[Arg::Scratch(256), Arg::In(&ints[..256 * 6]), Arg::Int(6)], 8);
    none("cluster_sum", line(8, 96), &[Arg::Scratch(32), Arg::Scratch(32), Arg::In(&ints[..3072])], 5);
    let bins = [Arg::In(&zeros[..512]), Arg::Int(128), Arg::Int(32), Arg::In(&ints), Arg::Int(1000)];
    none("cluster_histogram", Launch { shared: 128, ..clusters(4, 64, 4) }, &bins, 4);
}
