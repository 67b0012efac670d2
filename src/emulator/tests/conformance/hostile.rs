//! Broken files and absurd launches: one clear line, no panic, no hang.

use super::*;
use proptest::prelude::*;

fn refused(ptx: &str, words: &[&str]) {
    let what = match Module::parse("bad.ptx", ptx) {
        Ok(_) => panic!("was accepted: {ptx}"),
        Err(e) => e.to_string(),
    };
    assert!(words.iter().all(|w| what.contains(w)) && !what.contains('\n'), "not {words:?}: {what}");
}

fn kernel(body: &str) -> String {
    format!(
        ".version 9.0\n.target sm_80\n.address_size 64\n.visible .entry k()\n{{\n.reg .b32 %r<4>;\n.reg .pred %p<2>;\n{body}\n}}\n"
    )
}

#[test]
fn what_is_not_known_is_named_with_its_line() {
    refused("", &["no .target"]);
    refused("hello", &["line 1", "`hello`"]);
    refused(".version 9.0\n.target sm_80\n.visible .entry k(\n", &["line 3", "the end of the file"]);
    refused(&kernel("frobnicate.b32 %r1, %r2;"), &["line 8", "frobnicate.b32"]);
    refused(&kernel("add.frob.s32 %r1, %r2, %r3;"), &["line 8", "add.frob.s32"]);
    refused(&kernel("ld.frob.u32 %r1, [%r2];"), &["line 8", "`.frob`"]);
    refused(&kernel("add.s32 %r1, %r2, %r9;"), &["line 8", "`%r9` is not declared"]);
    refused(&kernel("add.s32 %r1, %p1, 3;"), &["line 8", "`%p1` is a predicate"]);
    refused(&kernel("bra NOWHERE;"), &["NOWHERE"]);
    refused(&kernel("call nobody;"), &["nobody"]);
    refused(&kernel(".reg .b32 %q<999999999>;"), &["line 8"]);
    refused(&kernel(".shared .b8 s[999999999];"), &["line 8", "shared memory"]);
    refused(&kernel("tcgen05.fence::before_thread_sync;"), &["line 8", "tcgen05"]);
    refused(&kernel("wgmma.mma_async.sp.sync.aligned.m64n8k32.f32.f16.f16 %r1;"), &["line 8", "sparse"]);
    for kind in ["f32.e4m3.e4m3", "f32.e5m2.e4m3", "s32.s8.s8", "s32.u8.s8", "s32.b1.b1", "f16.bf16.bf16"] {
        let code = format!("wgmma.mma_async.sync.aligned.m64n8k16.{kind} {{%r1}}, %r1, %r1, 1, 1, 1;");
        refused(
            &kernel(&code),
            &["line 8", &kind[4..], "not modelled"].map(|w| w.split('.').next().unwrap_or(w)),
        );
    }
    for shape in ["m64n12k16", "m64n264k16", "m64n0k16", "m64n8k8", "m32n8k16"] {
        let code =
            format!("wgmma.mma_async.sync.aligned.{shape}.f32.bf16.bf16 {{%r1}}, %r1, %r1, 1, 1, 1, 0, 0;");
        refused(&kernel(&code), &["line 8", shape, "no shape for bf16"]);
    }
    let wgmma =
        |operands: &str| kernel(&format!("wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {operands};"));
    refused(&wgmma("{%r1, %r2}, %r1, %r1, 1, 1, 1, 0, 0"), &["2 registers, 4 were expected"]);
    refused(&wgmma("{%r0, %r1, %r2, %r3}, {%r1, %r2}, %r1, 1, 1, 1, 0"), &["A has 2 registers"]);
    refused(&wgmma("{%r0, %r1, %r2, %r3}, %r1, %r1, 1, 2, 1, 0, 0"), &["scales are 1 and -1"]);
    refused(&wgmma("{%r0, %r1, %r2, %r3}, %r1, %r1, 1, 1, 1, 0"), &["3 immediate operands, 4"]);
    for count in [20, 100, 264] {
        let code = format!("setmaxnreg.inc.sync.aligned.u32 {count};");
        refused(&kernel(&code), &["line 8", "a multiple of 8 registers from 24 to 256"]);
    }
}

#[test]
fn launches_that_make_no_sense() {
    let x = [0u8; 4000];
    let args = || vec![Arg::Scratch(4000), Arg::In(&x), Arg::In(&x), Arg::Int(1000)];
    let fails = |kernel: &str, launch: Launch, args: &[Arg<'_>], words: &str| {
        let what = run(BASICS, kernel, &launch, args).map(|_| ()).unwrap_err().to_string();
        assert!(what.contains(words), "{what}");
    };
    fails("vector_sub", line(1, 32), &args(), "no kernel vector_sub; there are: vector_add");
    fails("vector_add", line(1, 2048), &args(), "2048 threads");
    fails("vector_add", line(0, 32), &args(), "0 blocks");
    fails("vector_add", Launch { grid: [u32::MAX; 3], ..line(1, 32) }, &args(), "blocks");
    fails("vector_add", Launch { shared: 1 << 30, ..line(1, 32) }, &args(), "shared memory");
    fails("vector_add", line(1, 32), &args()[..3], "3 arguments");
    fails(
        "vector_add",
        line(1, 32),
        &[Arg::Int(1), Arg::In(&x), Arg::In(&x), Arg::Int(1)],
        "argument 0 has 4 bytes",
    );
}

/// A file to be broken: the one for sm_80, or some kernels of those for sm_90, which are long.
fn original(part: usize) -> String {
    let text = [asynchronous::BUGS, warpgroup::PTX][part % 2];
    let (head, kernels) = text.split_at(text.find(".visible .entry").unwrap_or(0));
    let kernels: Vec<&str> = kernels.split_inclusive("\n}\n").collect();
    match part {
        0..4 => BUGS.to_string(),
        _ => head.to_string() + &kernels.iter().skip(part).step_by(20).copied().collect::<String>(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Bytes changed, cut, swapped: an error or a module, and what it runs ends within its budget.
    #[test]
    fn mutated_files_never_panic(
        edits in prop::collection::vec((any::<u32>(), 0u8..5, any::<u8>()), 1..8), cut in any::<u32>(), part in 0usize..24,
    ) {
        let mut text = original(part).into_bytes();
        for (at, kind, byte) in edits {
            let at = at as usize % text.len();
            let end = (at + 1 + byte as usize % 40).min(text.len());
            match kind {
                0 => text[at] = byte & 0x7f,
                1 => drop(text.drain(at..end)),
                2 => { let part = text[at..end].to_vec(); text.splice(at..at, part); }
                3 => text[at] = b"0123456789;,{}[]()@%.-"[byte as usize % 22],
                _ => { let other = (at + byte as usize * 97) % text.len(); text.swap(at, other) }
            }
        }
        if cut % 4 == 0 {
            text.truncate(cut as usize % text.len());
        }
        let text = String::from_utf8(text).unwrap();
        if let Ok(module) = Module::parse("mutated.ptx", &text) {
            let kernels: Vec<(String, Vec<usize>)> = module.functions.iter().filter(|f| f.entry)
                .map(|f| (f.name.clone(), f.params.iter().map(|p| p.size).collect())).collect();
            let mut emulator = Emulator::new(module).unwrap();
            for (kernel, sizes) in kernels {
                let a = emulator.allocate("a", 1024);
                emulator.write(a, &[1; 1024]).unwrap();
                let args: Vec<Vec<u8>> = sizes.iter().map(|s| match s {
                    8 => a.to_le_bytes().to_vec(),
                    n => vec![1; *n],
                }).collect();
                let args: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
                let _ = emulator.launch(&kernel, &Launch { budget: 2000, ..line(2, if part < 4 { 64 } else { 128 }) }, &args);
            }
        }
    }
}
