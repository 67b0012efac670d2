//! What reports say beside their place: the other side of a race, an assertion's words, a variable's declaration.

use super::*;
use crate::ptx::without;

const ASSERTS: &str = include_str!("ptx/asserts.ptx");

fn file(body: &str) -> String {
    format!(
        ".version 8.0\n.target sm_80\n.address_size 64\n.extern .shared .align 4 .b8 more[];\n\
         .visible .entry k(.param .u64 out)\n{{\n\
         .reg .pred %q; .reg .b32 %r<9>; .reg .b64 %d<9>; .shared .align 4 .b8 words[64]; .shared .align 16 .b8 quads[64];\n\
         ld.param.u64 %d0, [out]; mov.u32 %r0, %tid.x; mul.wide.u32 %d1, %r0, 4; add.u64 %d1, %d0, %d1;\n{body}\nret;\n}}\n"
    )
}

fn report(ptx: &str, launch: &Launch, args: &[Arg<'_>]) -> (Kind, String) {
    let error = run(ptx, "k", launch, args).map(|_| ()).unwrap_err();
    (error.kind().unwrap(), error.to_string())
}

/// All lanes have read what the last of them writes.
#[test]
fn a_race_has_two_sides() {
    let body = "ld.global.u32 %r1, [%d0];\nbar.warp.sync -1;\nsetp.eq.u32 %q, %r0, 31;\n@%q st.global.u32 [%d0], %r0;";
    for seed in SEEDS {
        let launch = Launch { seed, ..line(1, 32) };
        run(&file(body), "k", &launch, &[Arg::In(&[0; 4])]).unwrap();
        let (kind, what) =
            report(&file(&body.replace("bar.warp.sync -1;", "")), &launch, &[Arg::In(&[0; 4])]);
        assert_eq!((kind, what.matches("thread (31, 0, 0)").count()), (Kind::Race, 1), "{what}");
        assert!(what.contains("the other access: test.ptx:9, another lane of its warp"), "{what}");
    }
}

#[test]
fn what_an_assertion_says() {
    let args = |n| [Arg::Scratch(4 * 40), Arg::Int(n)];
    let at = bugs::planted("asserted");
    for seed in SEEDS {
        let launch = Launch { seed, ..line(1, 40) };
        run(ASSERTS, "asserted", &launch, &args(40)).unwrap();
        let error = run(ASSERTS, "asserted", &launch, &args(39)).map(|_| ()).unwrap_err();
        let what = error.to_string();
        assert_eq!(error.kind(), Some(Kind::Assert), "{what}");
        let words = "assert: `i < n && \"as many as there are\"` has failed, asserts.cu:";
        assert!(what.contains(words) && what.contains("in void asserted(int *, int)"), "{what}");
        assert!(bugs::names(&what, &at) && what.matches(&at).count() == 2, "{what}");
        assert!(what.contains("thread (39, 0, 0)"), "{what}");
    }
    // The call that the assertion is.
    let call = ASSERTS.lines().position(|l| l.contains("@%p") && l.contains("bra")).unwrap();
    assert!(run(&without(ASSERTS, call), "asserted", &line(1, 40), &args(40)).is_err());
}

/// A variable that is declared for words may lie anywhere that is good for words.
#[test]
fn misaligned_shared_memory() {
    let body = |name: &str, at: usize| {
        format!("mov.b32 %r1, 0;\nst.shared.v4.b32 [{name}+{at}], {{%r1, %r1, %r1, %r1}};")
    };
    let launch = Launch { shared: 64, ..line(1, 1) };
    for (name, at, words) in [
        (
            "words",
            4,
            "it is byte 4 of words, which is declared .align 4: ptxas may place it at any multiple of that",
        ),
        ("quads", 8, "it is byte 8 of quads, which is declared .align 16"),
        ("more", 4, "it is in dynamic shared memory, which begins at a multiple of 1024 here"),
    ] {
        let (kind, what) = report(&file(&body(name, at)), &launch, &[Arg::Scratch(4)]);
        assert!(kind == Kind::Misaligned && what.contains(words), "{what}");
        let aligned = format!("{}\nst.global.u32 [%d0], %r1;", body(name, 16));
        run(&file(&aligned), "k", &launch, &[Arg::Scratch(4)]).unwrap();
    }
}
