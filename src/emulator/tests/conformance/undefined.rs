//! Registers that nothing has written, wherever they decide something that is no store.

use super::*;

/// `%u` registers have no value; what is in `%r0` is stored.
fn file(body: &str) -> String {
    format!(
        ".version 9.0\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .u64 out, .param .u64 in)\n{{\n\
         .reg .b16 %h<2>; .reg .b32 %r<9>; .reg .b32 %u<3>; .reg .b64 %d<9>; .reg .pred %p<4>; .reg .pred %q;\n\
         .shared .align 128 .b8 s[1024]; .shared .align 8 .b64 b;\n\
         ld.param.u64 %d0, [out];\nld.param.u64 %d1, [in];\nmov.u32 %r8, %tid.x;\nmul.wide.u32 %d2, %r8, 4;\n\
         add.u64 %d0, %d0, %d2;\nmov.u32 %r0, 0;\nsetp.eq.u32 %p0, %r8, 0;\n\
         @%p0 mbarrier.init.shared.b64 [b], 1;\n@%p0 fence.mbarrier_init.release.cluster;\nbar.sync 0;\n\
         {body}\nst.global.u32 [%d0], %r0;\nret;\n}}\n"
    )
}

fn args() -> [Arg<'static>; 2] {
    [Arg::Scratch(128), Arg::In(&[1; 128])]
}

fn found(body: &str, words: &str) {
    for seed in 0..4 {
        let what = run(&file(body), "k", &Launch { seed, ..line(1, 32) }, &args());
        let what = what.map(|_| ()).expect_err(body).to_string();
        assert!(what.contains("uninitialised in k") && what.contains(words), "{body}: {what}");
    }
}

fn clean(body: &str) {
    for seed in 0..4 {
        run(&file(body), "k", &Launch { seed, ..line(1, 32) }, &args())
            .unwrap_or_else(|e| panic!("{body}: {e}"));
    }
}

#[test]
fn branches_and_barriers() {
    let table = "T: .branchtargets A, B;\n";
    let ends = "\nA:\nmov.u32 %r0, 1;\nB:";
    found(&format!("{table}brx.idx %u0, T;{ends}"), "the number of its target is");
    clean(&format!("{table}brx.idx %r0, T;{ends}"));
    found("bar.sync %u0;", "the barrier's number is");
    found("bar.sync 1, %u0;", "its number of threads is");
    found("bar.warp.sync %u0;", "its mask of lanes is");
    found("bar.red.popc.u32 %r0, 1, %q;", "it stores");
    found("bar.red.and.pred %p1, 1, %q;\nselp.u32 %r0, 1, 0, %p1;", "it stores");
    clean("bar.red.popc.u32 %r0, 1, %p0;");
}

#[test]
fn lanes_among_each_other() {
    let store = "it stores";
    found("shfl.sync.idx.b32 %r0, %r8, %u0, 31, -1;", store);
    found("shfl.sync.bfly.b32 %r0, %r8, 1, %u0, -1;", store);
    found("shfl.sync.down.b32 %r1|%p1, %r8, %u0, 31, -1;\nselp.u32 %r0, 1, 0, %p1;", store);
    // A lane that has no number itself gets nothing; the others do.
    clean("@%p0 mov.u32 %u0, 3;\nshfl.sync.idx.b32 %r1, %r8, %u0, 31, -1;\n@%p0 mov.u32 %r0, %r1;");
    found("shfl.sync.idx.b32 %r0, %r8, 1, 31, %u0;", "its mask of lanes is");
    found("vote.sync.ballot.b32 %r0, %p0, %u0;", "its mask of lanes is");
    found("redux.sync.add.u32 %r0, %r8, %u0;", "its mask of lanes is");
}

#[test]
fn mbarriers_and_copies() {
    let first = |body: &str| format!("@%p0 bra ONE;\nbra END;\nONE:\n{body}\nEND:");
    let one = |body: &str, words: &str| found(&first(body), words);
    let arrivals = "its number of arrivals is";
    one("mbarrier.init.shared.b64 [s], %u0;", arrivals);
    one("mbarrier.arrive.shared.b64 _, [b], %u0;", arrivals);
    let bytes = "its number of bytes is";
    one("mbarrier.arrive.expect_tx.shared.b64 _, [b], %u0;", bytes);
    one("mbarrier.expect_tx.relaxed.cta.shared.b64 [b], %u0;", bytes);
    one("mbarrier.complete_tx.relaxed.cta.shared.b64 [b], %u0;", bytes);
    one("mbarrier.test_wait.parity.shared.b64 %p1, [b], %u0;", "the phase that it waits for is");
    let copy = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes";
    one(&format!("{copy} [s], [%d1], %u0, [b];"), "its size is");
    one(&format!("{copy}.multicast::cluster [s], [%d1], 16, [b], %h0;"), "its mask of ranks is");
    one("cp.async.ca.shared.global [s], [%d1], 4, %u0;", "the size of its source is");
    clean(&first("mbarrier.test_wait.parity.shared.b64 %p1, [b], 0;\nmbarrier.arrive.shared.b64 _, [b], 1;"));
}
