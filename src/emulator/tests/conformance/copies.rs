//! `cp.async` one instruction at a time: which wait covers which bytes, and what they are read from until then.

use super::*;

/// Each of 32 threads copies its 4 bytes of `in` and of what lies 128 bytes on to `s` and 128 bytes on; `%r0` is stored.
fn file(body: &str) -> String {
    let copies = "cp.async.ca.shared.global [%r9], [%d1], 4;";
    let more = "cp.async.ca.shared.global [%r9+128], [%d1+128], 4;";
    let body = body.replace("COPY", copies).replace("MORE", more);
    format!(
        ".version 9.0\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .u64 out, .param .u64 in)\n{{\n\
         .reg .b32 %r<12>; .reg .b64 %d<9>; .reg .pred %p<4>;\n\
         .shared .align 128 .b8 s[256]; .shared .align 8 .b64 b; .shared .align 8 .b64 c;\n\
         ld.param.u64 %d0, [out];\nld.param.u64 %d1, [in];\nmov.u32 %r8, %tid.x;\nmul.wide.u32 %d2, %r8, 4;\n\
         add.u64 %d0, %d0, %d2;\nadd.u64 %d1, %d1, %d2;\nmov.u32 %r9, s;\nmad.lo.u32 %r9, %r8, 4, %r9;\n\
         setp.eq.u32 %p0, %r8, 0;\n@%p0 mbarrier.init.shared.b64 [b], 32;\n@%p0 mbarrier.init.shared.b64 [c], 32;\n\
         bar.sync 0;\nmov.u32 %r0, 0;\n{body}\nst.global.u32 [%d0], %r0;\nret;\n}}\n"
    )
}

fn seeds(body: &str) -> impl Iterator<Item = Result<Vec<i32>>> {
    let (ptx, x) = (file(body), (0..64).collect::<Vec<i32>>());
    (0..6).map(move |seed| {
        let args = [Arg::Scratch(128), Arg::In(bytes_of(&x))];
        run(&ptx, "k", &Launch { seed, ..line(1, 32) }, &args).map(|(out, _)| i32s(&out[0]))
    })
}

fn gives(body: &str, first: i32) {
    for out in seeds(body) {
        assert_eq!(
            out.unwrap_or_else(|e| panic!("{body}: {e}")),
            (first..first + 32).collect::<Vec<_>>(),
            "{body}"
        );
    }
}

fn found(body: &str, words: &[&str]) {
    for what in seeds(body) {
        let what = what.expect_err(body).to_string();
        assert!(words.iter().any(|w| what.contains(w)), "{body}: {what}");
    }
}

/// As of the sources of bulk copies: they are read at any time until the wait.
#[test]
fn a_source_is_read_until_the_wait() {
    let wait = "cp.async.commit_group;\ncp.async.wait_group 0;";
    let write = "st.global.u32 [%d1], 5;";
    gives(&format!("COPY\n{wait}\n{write}\nld.shared.u32 %r0, [%r9];"), 0);
    found(&format!("COPY\n{write}\n{wait}"), &["asynchronous, a cp.async of block 0, warp 0"]);
    found(&format!("COPY\ncp.async.commit_group;\nMORE\n{write}\n{wait}"), &["race in k"]);
    found(
        "COPY\ncp.async.commit_group;\nMORE\ncp.async.commit_group;\ncp.async.wait_group 1;\nst.global.u32 [%d1+128], 5;",
        &["race in k"],
    );
    gives(
        &format!(
            "COPY\ncp.async.commit_group;\nMORE\ncp.async.commit_group;\ncp.async.wait_group 1;\n{write}\nld.shared.u32 %r0, [%r9];"
        ),
        0,
    );
    // Of lanes that copy apart, one waits for its own alone.
    let apart = "@%p0 COPY\n@!%p0 COPY\ncp.async.commit_group;\n@%p0 cp.async.wait_group 0;\n";
    found(&format!("{apart}@%p0 st.global.u32 [%d1+4], 5;\n{wait}"), &["race in k"]);
    gives(&format!("{apart}@%p0 st.global.u32 [%d1], 5;\n{wait}\nld.shared.u32 %r0, [%r9];"), 0);
    // Another thread of the block, behind a barrier.
    let others =
        "xor.b32 %r1, %r8, 1;\nmul.wide.u32 %d3, %r1, 4;\nld.param.u64 %d4, [in];\nadd.u64 %d3, %d3, %d4;";
    gives(
        &format!("COPY\n{wait}\nbar.sync 0;\n{others}\nst.global.u32 [%d3], 5;\nld.shared.u32 %r0, [%r9];"),
        0,
    );
    found(&format!("COPY\nbar.sync 0;\n{others}\nst.global.u32 [%d3], 5;\n{wait}"), &["race in k"]);
}

/// `wait_all` needs no commit.
#[test]
fn wait_all_covers_what_is_not_committed() {
    gives("COPY\ncp.async.wait_all;\nld.shared.u32 %r0, [%r9];", 0);
    found("COPY\ncp.async.wait_group 0;\nld.shared.u32 %r0, [%r9];", &["cp.async is still copying"]);
}

/// Copies that an mbarrier tracks stay in their groups.
#[test]
fn a_wait_for_a_group_lands_that_group() {
    let track = "cp.async.mbarrier.arrive.noinc.shared.b64";
    let body = |pending: u32, at: u32| {
        format!(
            "COPY\n{track} [b];\ncp.async.commit_group;\nMORE\n{track} [c];\ncp.async.commit_group;\n\
             cp.async.wait_group {pending};\nld.shared.u32 %r0, [%r9+{at}];\ncp.async.wait_group 0;"
        )
    };
    let early = ["cp.async is still copying", "race in k"];
    gives(&body(1, 0), 0);
    found(&body(1, 128), &early);
    gives(&body(0, 128), 32);
    found(&body(2, 0), &early);
}

/// What comes for an mbarrier comes behind all copies of its thread, tracked by another or not.
#[test]
fn an_mbarrier_awaits_all_copies_before_it() {
    let track = "cp.async.mbarrier.arrive.noinc.shared.b64";
    let labels = std::cell::Cell::new(0);
    let wait = |bar: &str| {
        let n = labels.replace(labels.get() + 1);
        format!("W{n}:\nmbarrier.try_wait.parity.shared.b64 %p1, [{bar}], 0;\n@!%p1 bra W{n};\n")
    };
    let copies = format!("COPY\n{track} [b];\nMORE\n{track} [c];\n");
    // Of another thread, which has waited for nothing.
    let read = "xor.b32 %r1, %r8, 1;\nmov.u32 %r2, s;\nmad.lo.u32 %r2, %r1, 4, %r2;\n";
    let got = |at: u32| format!("ld.shared.u32 %r0, [%r2+{at}];\nxor.b32 %r0, %r0, 1;\n");
    let end = || wait("b") + &wait("c");
    for (bar, at) in [("b", 0), ("c", 0), ("c", 128)] {
        gives(&format!("{copies}{read}{}{}{}", wait(bar), got(at), end()), at as i32 / 4);
    }
    found(&format!("{copies}{read}{}{}{}", wait("b"), got(128), end()), &["still copying", "race in k"]);
    // Behind either its sources may be written.
    let write = "st.global.u32 [%d1], 5;\nld.shared.u32 %r0, [%r9];\n";
    gives(&format!("{copies}{}{write}{}", wait("b"), end()), 0);
    gives(&format!("{copies}{}{write}{}", wait("c"), end()), 0);
    found(&format!("{copies}{write}{}", end()), &["race in k"]);
}
