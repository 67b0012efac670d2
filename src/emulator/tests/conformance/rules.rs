//! The table of rules against the tests that it names, and bugs for rules that none of the other files plants.

use super::*;

const TABLE: &str = include_str!("../../RULES.md");

/// The tests' files by their names.
const FILES: [(&str, &str); 12] = [
    ("aligned", include_str!("aligned.rs")),
    ("asynchronous", include_str!("asynchronous.rs")),
    ("boxes", include_str!("boxes.rs")),
    ("bulk_groups", include_str!("bulk_groups.rs")),
    ("clusters", include_str!("clusters.rs")),
    ("hostile", include_str!("hostile.rs")),
    ("mbarrier", include_str!("mbarrier.rs")),
    ("overlap", include_str!("overlap.rs")),
    ("refused", include_str!("refused.rs")),
    ("rules", include_str!("rules.rs")),
    ("warpgroup", include_str!("warpgroup.rs")),
    ("wgmma", include_str!("wgmma.rs")),
];

/// A test's text, if there is one.
fn test_text(name: &str) -> Option<&'static str> {
    let (file, function) = name.split_once("::")?;
    let text = FILES.iter().find(|f| f.0 == file)?.1;
    let from = text.find(&format!("#[test]\nfn {function}("))?;
    let text = &text[from..];
    Some(&text[..text.find("\n}\n").unwrap_or(text.len())])
}

/// Every rule names a test that exists, and words of the report that it expects there.
#[test]
fn every_rule_has_its_planted_bug() {
    let rows: Vec<Vec<&str>> = TABLE
        .lines()
        .filter(|l| l.starts_with("| ") && !l.starts_with("| Rule"))
        .map(|l| l.trim_matches('|').split(" | ").map(str::trim).collect())
        .collect();
    for row in &rows {
        let &[rule, test, words] = &row[..] else { panic!("not three columns: {row:?}") };
        let text = test_text(test.trim_matches('`')).unwrap_or_else(|| panic!("{rule}: no test {test}"));
        let words = words.trim_matches('`');
        assert!(words.len() > 4 && text.contains(words), "{rule}: {test} says nothing of `{words}`");
    }
    let areas = [
        "Tensor maps",
        "Bulk copies",
        "mbarriers",
        "wgmma",
        "setmaxnreg",
        "Clusters",
        ".aligned",
        "Programmatic launch",
    ];
    for area in areas {
        let part = TABLE.split("\n## ").find(|part| part.starts_with(area)).unwrap_or("");
        assert!(part.lines().filter(|l| l.starts_with("| ")).count() > 2, "{area} has no rules");
    }
    assert!(rows.len() > 60, "{}", rows.len());
}

/// Two blocks of a cluster, whose first threads run `body` between two of its barriers; `%h0` is the mask of one's own rank.
fn file(body: &str) -> String {
    let load = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes";
    let wait = "W:\nmbarrier.try_wait.parity.shared.b64 %p1, [b], 0;\n@!%p1 bra W;";
    let expect = "mbarrier.arrive.expect_tx.shared.b64 _, [b],";
    let body = body.replace("LOAD", load).replace("WAIT", wait).replace("EXPECT", expect);
    format!(
        ".version 9.0\n.target sm_90a\n.address_size 64\n\
         .visible .entry k(.param .u64 in, .param .align 64 .b8 map[128])\n{{\n\
         .reg .b16 %h<3>; .reg .b32 %r<9>; .reg .b64 %d<9>; .reg .pred %p<4>;\n\
         .shared .align 1024 .b8 s[256]; .shared .align 8 .b64 b;\n\
         ld.param.u64 %d0, [in];\nmov.b64 %d1, map;\ncvta.param.u64 %d1, %d1;\nmov.u32 %r0, %tid.x;\n\
         setp.ne.u32 %p0, %r0, 0;\nmov.u32 %r1, s;\nmad.lo.u32 %r2, %r0, 8, %r1;\nmov.u64 %d2, 0;\n\
         st.shared.u64 [%r2], %d2;\nfence.proxy.async;\nmov.u32 %r3, %cluster_ctarank;\nmov.u32 %r4, 1;\n\
         shl.b32 %r4, %r4, %r3;\ncvt.u16.u32 %h0, %r4;\nmov.u16 %h1, 0;\nxor.b32 %r3, %r3, 1;\nmov.u32 %r5, 5;\n\
         mov.u32 %r6, 0;\nmov.u32 %r7, b;\n@!%p0 mbarrier.init.shared.b64 [b], 1;\n\
         fence.mbarrier_init.release.cluster;\nbarrier.cluster.arrive;\nbarrier.cluster.wait;\n\
         @%p0 bra END;\n{body}\nEND:\nbarrier.cluster.arrive;\nbarrier.cluster.wait;\nret;\n}}\n"
    )
}

/// With its bug `bad` the body is reported in these words under these seeds; with `good` in its place it is clean.
fn planted(seeds: impl Iterator<Item = u64>, body: &str, (bad, good): (&str, &str), words: &str) {
    let map = TensorMap {
        element: Element::F32,
        address: 0,
        sizes: vec![16, 4],
        strides: vec![64],
        tile: vec![4, 2],
        steps: vec![1, 1],
        swizzle: Swizzle::None,
    };
    let (array, launch) = ([0; 256], Launch { cluster: [2, 1, 1], ..line(2, 32) });
    let ran = |text: &str, seed: u64| {
        let args = [Arg::In(&array), Arg::Map(&array, map.clone())];
        run(&file(&body.replace("BUG", text)), "k", &Launch { seed, ..launch }, &args).map(|_| ())
    };
    for seed in seeds {
        let what = ran(bad, seed).expect_err(words).to_string();
        assert!(what.contains(words) && what.contains(" in k at test.ptx:"), "{bad}: {what}");
    }
    SEEDS.for_each(|seed| ran(good, seed).unwrap_or_else(|e| panic!("{good}: {e}")));
}

#[test]
fn bulk_copies() {
    let copy = "EXPECT 32;\nLOAD BUG, [b];\nWAIT";
    planted(SEEDS, copy, ("[s], [%d0], 24", "[s], [%d0], 32"), "a bulk copy of 24 bytes, a multiple of 16");
    planted(
        SEEDS,
        copy,
        ("[s+8], [%d0], 32", "[s+16], [%d0], 32"),
        "misaligned: a bulk copy at shared memory",
    );
    planted(SEEDS, copy, ("[s], [%d0+240], 32", "[s], [%d0+224], 32"), "across the end of arg0");
    let tensor =
        "EXPECT 32;\ncp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes BUG;\nWAIT";
    let end = "[%d1, {%r6, %r6}], [b]";
    let at = |to: &str| format!("{to}, {end}");
    planted(SEEDS, tensor, (&at("[s+16]"), &at("[s+128]")), "a multiple of 128 was expected");
    let multicast = "EXPECT 32;\nLOAD.multicast::cluster [s], [%d0], 32, [b], BUG;\nWAIT";
    planted(SEEDS, multicast, ("%h1", "%h0"), "multicast to ranks [] of a cluster of 2 blocks");
    // Both blocks add nothing to the same place.
    let reduce = "cp.reduce.async.bulk.tensor.2d.global.shared::cta.BUG.tile.bulk_group [%d1, {%r6, %r6}], [s];\n\
                  cp.async.bulk.commit_group;\ncp.async.bulk.wait_group 0;";
    planted(SEEDS, reduce, ("max", "add"), "a reduction that F32 does not have");
}

#[test]
fn mbarriers_and_addresses_of_a_cluster() {
    // Copies that come at once are over by then.
    let late = SEEDS.step_by(4);
    let ended = "EXPECT 32;\nLOAD [s], [%d0], 32, [b];\nBUG\nmbarrier.inval.shared.b64 [b];";
    planted(late, ended, ("", "WAIT"), "ends while copies that count on it are under way");
    let peer = "mapa.shared::cluster.u32 %r8, %r1, %r3;\nBUG";
    let (own, far) = ("ld.shared::cta.u32 %r8, [%r8];", "ld.shared::cluster.u32 %r8, [%r8];");
    planted(SEEDS, peer, (own, far), "of the cluster, used as one's own");
    let rank = "mapa.shared::cluster.u32 %r8, %r1, BUG;\nld.shared::cluster.u32 %r8, [%r8];";
    planted(SEEDS, rank, ("%r5", "%r3"), "which the cluster does not have");
    let wait = "mapa.shared::cluster.u32 %r8, %r7, BUG;\nmbarrier.arrive.shared.b64 _, [b];\n\
                mbarrier.test_wait.parity.shared::cluster.b64 %p1, [%r8], 1;";
    let it = "%cluster_ctarank";
    planted(SEEDS, wait, ("%r3", it), "only the own block's can be waited for");
}

#[test]
fn registers_that_are_not_there_to_give() {
    let ran = |count: u32| {
        let ptx = format!(
            ".version 9.0\n.target sm_90a\n.address_size 64\n.visible .entry k() .maxnreg 64 .maxntid 128, 1, 1\n{{\n\
             setmaxnreg.dec.sync.aligned.u32 {count};\nret;\n}}\n"
        );
        run(&ptx, "k", &line(1, 128), &[]).map(|_| ()).map_err(|e| e.to_string())
    };
    let what = ran(72).unwrap_err();
    assert!(what.contains("setmaxnreg lowers 64 registers to 72"), "{what}");
    assert_eq!(ran(56), Ok(()));
}
