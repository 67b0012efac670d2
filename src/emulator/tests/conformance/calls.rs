//! Functions that call one another: each has its own local variables and parameters.

use super::*;

fn file(functions: &str, body: &str) -> String {
    format!(
        ".version 9.0\n.target sm_80\n.address_size 64\n{functions}\n.visible .entry k(.param .u64 out)\n{{\n\
         .reg .b32 %r<9>; .reg .b64 %d<9>;\nld.param.u64 %d0, [out];\nmov.u32 %r0, %tid.x;\n\
         mul.wide.u32 %d1, %r0, 4;\nadd.u64 %d0, %d0, %d1;\n{body}\nst.global.u32 [%d0], %r1;\nret;\n}}\n"
    )
}

fn runs(ptx: &str, want: impl Fn(i32) -> i32) {
    for seed in 0..4 {
        let (out, _) = run(ptx, "k", &Launch { seed, ..line(1, 40) }, &[Arg::Scratch(160)]).unwrap();
        assert_eq!(i32s(&out[0]), (0..40).map(&want).collect::<Vec<_>>(), "seed {seed}");
    }
}

/// By name, and by a generic address that the caller hands on.
#[test]
fn a_callee_leaves_its_callers_variables_alone() {
    let f = ".func (.param .b32 o) f(.param .b64 p)\n{\n.reg .b32 %r<3>; .reg .b64 %d<3>; .local .b32 a; .local .b32 b;\n\
             st.local.u32 [b], 98;\nst.local.u32 [a], 99;\nld.param.u64 %d0, [p];\nld.u32 %r0, [%d0];\n\
             ld.local.u32 %r1, [b];\nadd.u32 %r0, %r0, %r1;\nst.param.b32 [o], %r0;\nret;\n}";
    let body = ".local .b32 x; .local .b32 y;\nst.local.u32 [x], 7;\nst.local.u32 [y], %r0;\n\
                mov.u64 %d2, y;\ncvta.local.u64 %d2, %d2;\n\
                { .param .b64 in; .param .b32 got; st.param.b64 [in], %d2; call (got), f, (in); ld.param.b32 %r2, [got]; }\n\
                ld.local.u32 %r1, [x];\nld.local.u32 %r3, [y];\nmad.lo.u32 %r1, %r1, 1000, %r3;\nadd.u32 %r1, %r1, %r2;";
    runs(&file(f, body), |i| 7000 + i + i + 98);
}

/// n! by recursion: every call holds its number in a local variable of its own.
#[test]
fn recursion_has_its_own_variables_each_time() {
    let f = ".func (.param .b32 o) f(.param .b32 n)\n{\n.reg .b32 %r<4>; .reg .pred %p; .local .b32 own;\n\
             ld.param.u32 %r0, [n];\nst.local.u32 [own], %r0;\nmov.u32 %r1, 1;\nsetp.lt.u32 %p, %r0, 2;\n@%p bra END;\n\
             sub.u32 %r0, %r0, 1;\n\
             { .param .b32 in; .param .b32 got; st.param.b32 [in], %r0; call (got), f, (in); ld.param.b32 %r1, [got]; }\n\
             ld.local.u32 %r2, [own];\nmul.lo.u32 %r1, %r1, %r2;\nEND:\nst.param.b32 [o], %r1;\nret;\n}";
    let body = "rem.u32 %r2, %r0, 7;\n\
                { .param .b32 in; .param .b32 got; st.param.b32 [in], %r2; call (got), f, (in); ld.param.b32 %r1, [got]; }";
    runs(&file(f, body), |i| (1..=i % 7).product());
}

/// Lanes that are in different functions at the same depth.
#[test]
fn divergent_calls_do_not_share() {
    let one = |name: &str, gap: &str, value: i32| {
        format!(
            ".func (.param .b32 o) {name}()\n{{\n.reg .b32 %r; {gap} .local .b32 x;\nst.local.u32 [x], {value};\n\
             bar.warp.sync -1;\nld.local.u32 %r, [x];\nst.param.b32 [o], %r;\nret;\n}}\n"
        )
    };
    let functions = one("f", "", 1) + &one("g", ".local .align 8 .b8 first[400];", 2);
    let body = ".reg .pred %p; and.b32 %r2, %r0, 1;\nsetp.ne.u32 %p, %r2, 0;\n@%p bra G;\n\
                { .param .b32 got; call (got), f; ld.param.b32 %r1, [got]; }\nbra END;\nG:\n\
                { .param .b32 got; call (got), g; ld.param.b32 %r1, [got]; }\nEND:";
    let ptx = file(&functions, body).replace("bar.warp.sync -1", "activemask.b32 %r");
    runs(&ptx, |i| 1 + i % 2);
}

#[test]
fn arguments_are_parameters_of_the_right_size() {
    let f = ".func f(.param .b64 p)\n{\nret;\n}\n";
    let fails = |body: &str, words: &str| {
        let what = Module::parse("bad.ptx", &file(f, body)).map(|_| ()).unwrap_err().to_string();
        assert!(what.contains(words) && !what.contains('\n'), "{what}");
    };
    fails(".shared .b64 s;\ncall f, (s);", "`s` is no parameter");
    fails(".local .b64 s;\ncall f, (s);", "`s` is no parameter");
    fails("{ .param .b32 in; call f, (in); }", "`in` has 4 bytes, 8 were expected");
    fails("{ .param .b8 in[16]; call f, (in); }", "`in` has 16 bytes, 8 were expected");
}
