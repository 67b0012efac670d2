//! Bulk groups belong to the thread that commits them, and so does what waiting for them tells.

use super::*;

/// A warp fills `s`; its lane 0 (`%p0`) stores it to `out` as a bulk group, and lane 1 (`%p1`) is another thread.
fn file(body: &str) -> String {
    let store = "@%p0 cp.async.bulk.global.shared::cta.bulk_group [%d0], [s], 128;\n\
                 @%p0 cp.async.bulk.commit_group;";
    let body = body.replace("STORE", store);
    format!(
        ".version 9.0\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .u64 out)\n{{\n\
         .reg .b32 %r<9>; .reg .b64 %d<9>; .reg .pred %p<4>; .shared .align 128 .b8 s[128];\n\
         ld.param.u64 %d0, [out];\nmov.u32 %r0, %tid.x;\nmov.u32 %r1, s;\nmad.lo.u32 %r2, %r0, 4, %r1;\n\
         setp.eq.u32 %p0, %r0, 0;\nsetp.eq.u32 %p1, %r0, 1;\nst.shared.u32 [%r2], %r0;\n\
         fence.proxy.async.shared::cta;\nbar.warp.sync -1;\n{body}\nret;\n}}\n"
    )
}

fn seeds(body: &str) -> impl Iterator<Item = Result<Vec<i32>>> {
    let ptx = file(body);
    SEEDS.map(move |seed| {
        let launch = Launch { seed, ..line(1, 32) };
        run(&ptx, "k", &launch, &[Arg::Scratch(128)]).map(|(out, _)| i32s(&out[0]))
    })
}

fn gives(body: &str) {
    for out in seeds(body) {
        assert_eq!(out.unwrap_or_else(|e| panic!("{body}: {e}")), (0..32).collect::<Vec<_>>(), "{body}");
    }
}

fn found(body: &str) {
    for what in seeds(body) {
        let what = what.expect_err(body).to_string();
        let words = ["race in k", "thread (1, 0, 0)", "in a bulk group of block 0, thread 0"];
        assert!(words.iter().all(|w| what.contains(w)), "{body}: {what}");
    }
}

#[test]
fn a_wait_by_another_thread_waits_for_nothing() {
    let (wait, read) = ("cp.async.bulk.wait_group 0;", "cp.async.bulk.wait_group.read 0;");
    let end = "@%p0 cp.async.bulk.wait_group 0;";
    let write = "@%p1 st.shared.u32 [%r2], 7;";
    for wait in [wait, read] {
        // Another lane alone; all lanes, of which each waits for its own.
        found(&format!("STORE\n@%p1 {wait}\n{write}\n{end}"));
        found(&format!("STORE\n{wait}\n{write}\n{end}"));
        found(&format!("STORE\n@%p0 {wait}\n{write}\n{end}"));
        // The thread itself, and others whom something orders behind its wait.
        gives(&format!("STORE\n@%p0 {wait}\n@%p0 st.shared.u32 [%r2], 7;\n{end}"));
        for order in ["bar.warp.sync -1;", "bar.sync 0;"] {
            gives(&format!("STORE\n@%p0 {wait}\n{order}\n{write}\n{end}"));
        }
    }
    // A copy that nobody has committed is in no group yet.
    let own = "@%p0 st.shared.u32 [%r2], 7;";
    let open = "@%p0 cp.async.bulk.global.shared::cta.bulk_group [%d0], [s], 128;";
    let late = format!("{open}\n{end}\n{own}\n@%p0 cp.async.bulk.commit_group;\n{end}");
    for what in seeds(&late) {
        let what = what.expect_err(&late).to_string();
        assert!(
            what.contains("race in k") && what.contains("in a bulk group of block 0, thread 0"),
            "{what}"
        );
    }
    // What arrives is read by another thread.
    let read = "@%p1 ld.global.u32 %r3, [%d0];";
    found(&format!("STORE\n{wait}\n{read}"));
    // All lanes, of which the first one alone has waited.
    found(&format!("STORE\n{wait}\nld.global.u32 %r3, [%d0];"));
    gives(&format!("STORE\n{wait}\nbar.warp.sync -1;\n{read}"));
    gives(&format!("STORE\n{wait}\n@%p0 ld.global.u32 %r3, [%d0];"));
}
