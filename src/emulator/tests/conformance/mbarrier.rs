//! mbarriers one instruction at a time, against the rules of the ISA written down a second time; and opcodes.

use super::*;

/// A kernel of one warp whose lane 0 runs `body` on the mbarrier at `b` and leaves `%r0` to `%r7` in `out`.
fn results(body: &str) -> Result<Vec<i32>> {
    let store: String = (0..8).map(|i| format!("st.global.u32 [%d0+{}], %r{i};\n", 4 * i)).collect();
    let zero: String = (0..8).map(|i| format!("mov.u32 %r{i}, -1;\n")).collect();
    let ptx = format!(
        ".version 9.0\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .u64 out)\n{{\n\
         .reg .b32 %r<20>; .reg .b64 %d<9>; .reg .pred %p<4>; .shared .align 8 .b64 b[4];\n\
         ld.param.u64 %d0, [out];\nmov.u32 %r10, %tid.x;\nsetp.ne.u32 %p0, %r10, 0;\n@%p0 ret;\n{zero}{body}\n{store}ret;\n}}\n"
    );
    let mut all = Vec::new();
    for seed in 0..4 {
        let (out, _) = run(&ptx, "k", &Launch { seed, ..line(1, 32) }, &[Arg::Scratch(32)])?;
        all.push(i32s(&out[0]));
    }
    assert!(all.iter().all(|a| a == &all[0]), "{all:?}");
    real::also(&ptx, "k", &line(1, 32), &[Arg::Scratch(32)], |there| {
        assert_eq!(i32s(&there[0]), all[0], "{body}")
    });
    Ok(all.remove(0))
}

/// `%rN` becomes whether the phase of this parity is over.
fn over(n: u32, parity: u32) -> String {
    format!("mbarrier.test_wait.parity.shared.b64 %p1, [b], {parity};\nselp.s32 %r{n}, 1, 0, %p1;\n")
}

#[test]
fn a_phase_ends_with_its_last_arrival() {
    let arrive = "mbarrier.arrive.shared.b64 %d1, [b];\n";
    // A fresh one: the phase before the first counts as over.
    let body = format!("mbarrier.init.shared.b64 [b], 2;\n{}{}", over(0, 1), over(1, 0))
        + arrive
        + &over(2, 0)
        + arrive
        + &over(3, 0)
        + &over(4, 1)
        + arrive
        + arrive
        + &over(5, 1)
        + &over(6, 0);
    assert_eq!(results(&body).unwrap(), [1, 0, 0, 1, 0, 1, 0, -1]);
}

#[test]
fn states_and_pending_counts() {
    let body = "mbarrier.init.shared::cta.b64 [b], 5;\n\
        mbarrier.arrive.shared.b64 %d1, [b];\nmbarrier.pending_count.b64 %r0, %d1;\n\
        mbarrier.arrive.noComplete.release.cta.shared.b64 %d2, [b], 3;\nmbarrier.pending_count.b64 %r1, %d2;\n\
        mbarrier.test_wait.acquire.cta.shared::cta.b64 %p1, [b], %d1;\nselp.s32 %r2, 1, 0, %p1;\n\
        mbarrier.arrive.release.cta.shared::cta.b64 %d3, [b], 1;\nmbarrier.pending_count.b64 %r3, %d3;\n\
        mbarrier.test_wait.shared.b64 %p1, [b], %d1;\nselp.s32 %r4, 1, 0, %p1;\n\
        mbarrier.arrive.shared.b64 %d4, [b];\nmbarrier.pending_count.b64 %r5, %d4;\n\
        mbarrier.try_wait.shared.b64 %p1, [b], %d4, 1000;\nselp.s32 %r6, 1, 0, %p1;\n\
        mbarrier.try_wait.relaxed.cluster.shared::cta.b64 %p1, [b], %d3;\nselp.s32 %r7, 1, 0, %p1;\n";
    assert_eq!(results(body).unwrap(), [5, 4, 0, 1, 1, 5, 0, 1]);
}

#[test]
fn bytes_count_like_arrivals() {
    let body = String::from("mbarrier.init.shared.b64 [b], 1;\nmbarrier.arrive.expect_tx.shared.b64 %d1, [b], 48;\n")
        + &over(0, 0)
        + "mbarrier.complete_tx.relaxed.cta.shared.b64 [b], 32;\n"
        + &over(1, 0)
        + "mbarrier.complete_tx.shared.b64 [b], 16;\n"
        + &over(2, 0)
        // Bytes may come before they are expected, in the same phase.
        + "mbarrier.complete_tx.shared.b64 [b], 64;\n"
        + &over(3, 1)
        + "mbarrier.expect_tx.relaxed.cta.shared.b64 [b], 64;\n"
        + &over(4, 1)
        + "mbarrier.arrive.shared.b64 _, [b];\n"
        + &over(5, 1);
    assert_eq!(results(&body).unwrap(), [0, 0, 1, 0, 0, 1, -1, -1]);
}

#[test]
fn a_dropped_arrival_is_not_awaited_again() {
    let body = String::from("mbarrier.init.shared.b64 [b], 2;\nmbarrier.arrive_drop.shared.b64 %d1, [b];\n")
        + "mbarrier.arrive.shared.b64 %d1, [b];\n"
        + &over(0, 0)
        + "mbarrier.arrive.shared.b64 %d1, [b];\n"
        + &over(1, 1)
        + "mbarrier.pending_count.b64 %r2, %d1;\nmbarrier.inval.shared.b64 [b];\nmbarrier.init.shared.b64 [b], 1;\n"
        + &over(3, 1)
        + &over(4, 0);
    assert_eq!(results(&body).unwrap(), [1, 1, 1, 1, 0, -1, -1, -1]);
}

#[test]
fn what_an_mbarrier_refuses() {
    let fails = |body: &str, words: &str| {
        let what = results(body).unwrap_err().to_string();
        assert!(what.contains(words), "{what}");
    };
    let init = "mbarrier.init.shared.b64 [b], 1;\n";
    fails("mbarrier.init.shared.b64 [b], 0;", "0 arrivals, of 1 to 1048575");
    fails(&format!("{init}mbarrier.arrive.noComplete.shared.b64 %d1, [b], 1;"), "noComplete completes");
    fails(&format!("{init}mbarrier.expect_tx.shared.b64 [b], 1048576;"), "at most 1048575");
    fails(&format!("{init}mbarrier.arrive.shared.b64 _, [b], 0;"), "0 arrivals");
    fails(&format!("{init}st.shared.u32 [b+4], 1;"), "which is an mbarrier; mbarrier.inval first");
    let three = "mbarrier.arrive.shared.b64 _, [b];\n".repeat(2);
    let old = format!(
        "{init}mbarrier.arrive.shared.b64 %d1, [b];\n{three}mbarrier.test_wait.shared.b64 %p1, [b], %d1;"
    );
    fails(&old, "a state of 3 phases ago");
    fails("mov.u64 %d1, 64;\nmbarrier.inval.b64 [%d1];", "in no allocation");
}

/// Whatever nvcc may write of this family is known, or refused by name.
#[test]
fn opcodes() {
    let parse = |line: &str| {
        let ptx = format!(
            ".version 9.0\n.target sm_90a\n.address_size 64\n.visible .entry k()\n{{\n.reg .b16 %h<2>; .reg .b32 %r<6>; \
             .reg .b64 %d<6>; .reg .pred %p<2>; .shared .align 128 .b8 s[256];\n{line}\nret;\n}}\n"
        );
        Module::parse("opcodes.ptx", &ptx).map(|_| ())
    };
    for known in [
        "fence.proxy.async;",
        "fence.proxy.async.global;",
        "fence.proxy.async.shared::cluster;",
        "fence.proxy.alias;",
        "fence.proxy.tensormap::generic.release.gpu;",
        "fence.proxy.async::generic.release.sync_restrict::shared::cta.cluster;",
        "fence.acq_rel.cluster;",
        "membar.sys;",
        "griddepcontrol.wait;",
        "griddepcontrol.launch_dependents;",
        "barrier.cluster.arrive;",
        "barrier.cluster.arrive.relaxed.aligned;",
        "barrier.cluster.wait.acquire;",
        "prefetch.tensormap [%d0];",
        "prefetch.param.tensormap [%d0];",
        "cp.async.bulk.prefetch.L2.global [%d0], 64;",
        "cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%d0, {%r0, %r1}];",
        "cp.async.bulk.prefetch.tensor.1d.L2.global.L2::cache_hint [%d0, {%r0}], %d1;",
        "cp.async.bulk.wait_group 3;",
        "cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes.L2::cache_hint [s], [%d0], %r1, [%r2], %d1;",
        "cp.async.bulk.global.shared::cta.bulk_group.L2::cache_hint [%d0], [s], 16, %d1;",
        "cp.reduce.async.bulk.global.shared::cta.bulk_group.min.f16 [%d0], [s], 16;",
        "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.noftz.bf16 [%d0], [s], 16;",
        "cp.reduce.async.bulk.global.shared::cta.bulk_group.L2::cache_hint.max.s32 [%d0], [s], 16, %d1;",
        "cp.reduce.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes.add.u64 [%r0], [s], 16, [%r1];",
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint \
         [s], [%d0, {%r0, 0, -1}], [%r1], %h0, %d1;",
        "cp.reduce.async.bulk.tensor.2d.global.shared::cta.min.tile.bulk_group [%d0, {%r0, %r1}], [s];",
        "mapa.u64 %d0, %d1, 3;",
        "getctarank.u64 %r0, %d1;",
        "mov.u32 %r0, %cluster_nctaid.y;",
        "ld.shared::cluster.v4.u32 {%r0, %r1, %r2, %r3}, [%r4];",
        "atom.acq_rel.cluster.shared::cluster.add.u32 %r0, [%r1], 1;",
        "cp.async.mbarrier.arrive.b64 [%d0];",
    ] {
        assert!(parse(known).is_ok(), "{known}: {:?}", parse(known));
    }
    for (unknown, words) in [
        (
            "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [s], [%d0, {%r0, %r0, %r0, %r0}], [%r1], {%h0, %h0};",
            "`.im2col`",
        ),
        (
            "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [s], [%d0, {%r0}], [%r1];",
            "coordinates",
        ),
        ("cp.async.bulk.global.shared::cta.bulk_group.cp_mask [%d0], [s], 16, %h0;", "`.cp_mask`"),
        ("mbarrier.arrive.shared::cluster.b64 %d0, [%r0];", "gives no state"),
        ("cp.reduce.async.bulk.global.shared::cta.bulk_group.max.f32 [%d0], [s], 16;", "max.f32"),
        ("mbarrier.frob.b64 [%r0];", "mbarrier.frob"),
        ("mbarrier;", "mbarrier"),
        ("barrier.cluster;", "barrier.cluster"),
        ("tensormap.replace.tile.rank.global.b1024.b32 [%d0], 1;", "tensormap.replace"),
        ("fence.proxy.frob;", "fence.proxy.frob"),
        ("cp.async.bulk.wait_group %r0;", "number of groups"),
    ] {
        let what = parse(unknown).unwrap_err().to_string();
        assert!(what.contains(words) && !what.contains('\n'), "{what}");
    }
}

#[test]
fn clusters_that_make_no_sense() {
    let ptx = include_str!("ptx/async_sm90.ptx");
    let fails = |ptx: &str, kernel: &str, launch: Launch, args: &[Arg<'_>], words: &str| {
        let what = run(ptx, kernel, &launch, args).map(|_| ()).unwrap_err().to_string();
        assert!(what.contains(words) && !what.contains('\n'), "{what}");
    };
    let args = [Arg::Scratch(64), Arg::Scratch(64), Arg::Scratch(64)];
    let of = |blocks: u32, cluster: [u32; 3]| Launch { cluster, ..line(blocks, 32) };
    fails(ptx, "cluster_sum", of(6, [1; 3]), &args, "no whole number of clusters");
    fails(ptx, "cluster_sum", of(4, [2, 1, 1]), &args, "the kernel was compiled for");
    fails(ptx, "ring", of(64, [32, 1, 1]), &args[..2], "a cluster of 32 blocks, 1 to 8");
    fails(ptx, "ring", of(64, [0, 1, 1]), &args[..2], "a cluster of 0 blocks");
    fails(ptx, "ring", of(64, [u32::MAX; 3]), &args[..2], "a cluster of");
    fails(BASICS, "vector_add", of(4, [2, 1, 1]), &args[..1], "sm_80 has none");
}

/// `cp.reduce.async.bulk` on 16 bytes of every type.
#[test]
fn reductions_by_type() {
    use half::{bf16, f16};
    let reduce = |kind: &str, old: &[u8], new: &[u8]| {
        let ptx = format!(
            ".version 9.0\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .u64 out, .param .u64 in)\n{{\n\
             .reg .b64 %d<6>; .reg .b32 %r<2>; .reg .pred %p<1>; .shared .align 16 .b8 s[16];\n\
             ld.param.u64 %d0, [out];\nld.param.u64 %d1, [in];\nmov.u32 %r0, %tid.x;\nsetp.ne.u32 %p0, %r0, 0;\n\
             @%p0 ret;\nld.global.v2.u64 {{%d2, %d3}}, [%d1];\nst.shared.v2.u64 [s], {{%d2, %d3}};\nfence.proxy.async;\n\
             cp.reduce.async.bulk.global.shared::cta.bulk_group.{kind} [%d0], [s], 16;\n\
             cp.async.bulk.commit_group;\ncp.async.bulk.wait_group 0;\nret;\n}}\n"
        );
        let on_a_gpu = std::cell::Cell::new(None);
        real::also(&ptx, "k", &line(1, 32), &[Arg::In(old), Arg::In(new)], |there| {
            on_a_gpu.set(Some(there[0].clone()));
        });
        let runs = (0..4).map(|seed| {
            let launch = Launch { seed, ..line(1, 32) };
            run(&ptx, "k", &launch, &[Arg::In(old), Arg::In(new)]).unwrap().0.remove(0)
        });
        runs.chain(on_a_gpu.take())
            .reduce(|a, b| if a == b { a } else { panic!("{kind}: {a:?} {b:?}") })
            .unwrap()
    };
    let (a, b) = ([7i32, -9, i32::MAX, 0], [-2i32, 4, 1, 0x7fff_fff0]);
    let check = |kind: &str, f: fn(i32, i32) -> i32| {
        let want: Vec<i32> = a.iter().zip(&b).map(|(a, b)| f(*a, *b)).collect();
        assert_eq!(i32s(&reduce(kind, bytes_of(&a), bytes_of(&b))), want, "{kind}");
    };
    check("add.s32", i32::wrapping_add);
    check("min.s32", i32::min);
    check("max.u32", |a, b| (a as u32).max(b as u32) as i32);
    check("and.b32", |a, b| a & b);
    check("or.b32", |a, b| a | b);
    check("xor.b32", |a, b| a ^ b);
    check("inc.u32", |a, b| if a as u32 >= b as u32 { 0 } else { a + 1 });
    check("dec.u32", |a, b| if a == 0 || a as u32 > b as u32 { b } else { a - 1 });
    let wide = reduce("add.u64", bytes_of(&[u64::MAX, 5]), bytes_of(&[3u64, 6]));
    assert_eq!(wide, bytes_of(&[2u64, 11]));
    let floats =
        reduce("add.f32", bytes_of(&[0.1f32, 1e30, -2.0, 3.0]), bytes_of(&[0.2f32, -1e30, 0.5, 4.0]));
    assert_eq!(f32s(&floats), [0.1f32 + 0.2, 0.0, -1.5, 7.0]);
    let small = [1e-40f32, 2e-38, -1e-39, f32::MIN_POSITIVE];
    let flushed = reduce("add.f32", bytes_of(&small), bytes_of(&[1e-40f32, -1.5e-38, 0.0, 1e-39]));
    assert_eq!(f32s(&flushed), [0.0f32, 0.0, 0.0, f32::MIN_POSITIVE]);
    let (x, y) = (
        [1.5f32, -3.0, 0.0, f32::NAN, 8.0, -0.25, 100.0, 2.0],
        [1.0f32, -2.5, 4.0, 6.0, 9.0, -1.0, 0.5, 2.0],
    );
    let least = [1.0f32, -3.0, 0.0, 6.0, 8.0, -1.0, 0.5, 2.0];
    let half = |v: [f32; 8]| v.map(f16::from_f32);
    assert_eq!(reduce("min.f16", bytes_of(&half(x)), bytes_of(&half(y))), bytes_of(&half(least)));
    let brain = |v: [f32; 8]| v.map(bf16::from_f32);
    let most = [1.5f32, -2.5, 4.0, 6.0, 9.0, -0.25, 100.0, 2.0];
    assert_eq!(reduce("max.bf16", bytes_of(&brain(x)), bytes_of(&brain(y))), bytes_of(&brain(most)));
    let z = y.map(|v| v * 2.0);
    let sums: [f32; 8] = std::array::from_fn(|i| y[i] + z[i]);
    assert_eq!(reduce("add.noftz.bf16", bytes_of(&brain(y)), bytes_of(&brain(z))), bytes_of(&brain(sums)));
}

/// `arrive_drop` takes as many from later phases as it arrives with.
#[test]
fn drops_by_their_count() {
    let body =
        String::from("mbarrier.init.shared.b64 [b], 3;\nmbarrier.arrive_drop.shared.b64 %d1, [b], 2;\n")
            + "mbarrier.arrive.shared.b64 %d1, [b];\n"
            + &over(0, 0)
            + "mbarrier.arrive.shared.b64 %d1, [b];\n"
            + &over(1, 1)
            + "mbarrier.pending_count.b64 %r2, %d1;\n";
    assert_eq!(results(&body).unwrap(), [1, 1, 1, -1, -1, -1, -1, -1]);
    let more = "mbarrier.init.shared.b64 [b], 1;\ncp.async.mbarrier.arrive.shared.b64 [b];\n\
                mbarrier.arrive_drop.shared.b64 %d1, [b], 2;";
    let what = results(more).unwrap_err().to_string();
    assert!(what.contains("2 arrivals"), "{what}");
}
