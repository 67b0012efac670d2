//! Files that were read as something else than they say, or that made the reader or the launch panic.

use super::*;

fn file(body: &str) -> String {
    format!(
        ".version 9.0\n.target sm_90a\n.address_size 64\n.visible .entry k()\n{{\n.reg .b16 %h<2>; .reg .b32 %r<4>; \
         .reg .b64 %d<4>; .reg .pred %p<2>; .shared .align 128 .b8 s[256];\n{body}\nret;\n}}\n"
    )
}

fn refused(body: &str, words: &str) {
    let what = match Module::parse("bad.ptx", &file(body)) {
        Ok(_) => panic!("was accepted: {body}"),
        Err(e) => e.to_string(),
    };
    assert!(what.contains(words) && what.contains("line 7") && !what.contains('\n'), "{body}: {what}");
}

#[test]
fn local_memory_has_an_end() {
    let many = ".local .b8 x[1048000];".repeat(4097);
    refused(&many, "more than 1 MiB of local memory");
}

#[test]
fn votes_by_their_words() {
    for odd in ["vote", "vote.sync", "vote.all", "vote.sync.all", "vote.ballot.pred", "vote.all.b32"] {
        refused(&format!("{odd} %p0, %p1, 1;"), odd);
    }
    for known in ["vote.sync.all.pred %p0, %p1, 1;", "vote.sync.uni.pred %p0, %p1, 1;"] {
        Module::parse("good.ptx", &file(known)).unwrap();
    }
}

#[test]
fn coordinates_are_for_boxes() {
    refused("ld.global.u32 %r1, [%d1, {%r1, %r1}];", "expected an address in brackets");
    refused("st.global.u32 [%d1, {%r1}], %r1;", "expected an address in brackets");
    refused("atom.global.add.u32 %r1, [%d1, {%r1}], 1;", "expected an address in brackets");
    let copy = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes";
    refused(&format!("{copy} [s], [%d1, {{%r1}}], 16, [s];"), "expected an address in brackets");
}

/// Spaces as the ISA pairs them; only what goes from global memory to the cluster goes to several blocks.
#[test]
fn spaces_of_a_bulk_copy() {
    let (told, group) = ("mbarrier::complete_tx::bytes", "bulk_group");
    let many = "global.shared::cta.bulk_group.multicast::cluster";
    refused(&format!("cp.async.bulk.{many} [%d1], [s], 16, [s], %h0;"), many);
    refused(&format!("cp.async.bulk.{many} [%d1], [s], 16, %h0;"), many);
    refused(&format!("cp.async.bulk.tensor.1d.{many} [%d1, {{%r1}}], [s], %h0;"), many);
    for pair in ["global.global", "global.shared::cluster"] {
        refused(&format!("cp.async.bulk.{pair}.{group} [%d1], [%d2], 16;"), pair);
    }
    for pair in ["shared::cta.shared::cta", "shared::cta.shared::cluster", "shared::cluster.shared::cluster"]
    {
        refused(&format!("cp.async.bulk.{pair}.{told} [s], [s], 16, [s];"), pair);
    }
    let many = format!("shared::cta.global.{told}.multicast::cluster");
    refused(&format!("cp.async.bulk.{many} [s], [%d1], 16, [s], %h0;"), &many);
    refused(&format!("cp.async.bulk.shared::cluster.global.{group} [s], [%d1], 16;"), group);
    refused(
        &format!("cp.reduce.async.bulk.shared::cluster.global.{told}.add.u32 [s], [%d1], 16, [s];"),
        told,
    );
    refused(&format!("cp.async.bulk.tensor.1d.shared::cluster.shared::cta.{told} [s], [s], [s];"), told);
}

/// Bounds of a kernel that no machine has: it has no registers, and nothing is divided by zero.
#[test]
fn absurd_bounds_of_a_kernel() {
    for bounds in
        [".maxntid 65536 .minnctapersm 65536", ".maxntid 0", ".maxntid 1048576 .minnctapersm 1048576"]
    {
        let ptx = file("setmaxnreg.inc.sync.aligned.u32 24;").replace("k()", &format!("k() {bounds}"));
        let launch = if bounds == ".maxntid 0" { line(1, 0) } else { line(1, 128) };
        let what = run(&ptx, "k", &launch, &[]).map(|_| ()).unwrap_err().to_string();
        assert!(what.contains("registers are not bounded") || what.contains("0 threads"), "{what}");
    }
}
