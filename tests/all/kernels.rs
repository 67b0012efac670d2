//! How kernels get from C to Rust: signatures, launchers, the search for nvcc, what ptxas says; and what the build holds.

use crate::answers;
#[path = "../../src/kernels/build/launcher.rs"]
mod launcher;
#[path = "../../src/kernels/build/nvcc.rs"]
mod nvcc;
#[path = "../../src/kernels/build/signature.rs"]
mod signature;

use crate::common;

use common::here;
use launcher::{launchers, layout, twin};
use llm2vec::launches as kernels;
use proptest::prelude::*;
use signature::{Entry, Family, Kind, Malformed, Params, Unit, params, parse};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// A file whose kernels take its own structs.
fn read(source: &str) -> Result<Unit, Malformed> {
    parse("toy", source, &params(source)?)
}

fn unit(source: &str) -> Unit {
    read(source).unwrap_or_else(|e| panic!("line {}: {}", e.line, e.what))
}

fn refused(source: &str) -> (usize, String) {
    let Malformed { line, what } = read(source).expect_err(source);
    assert!(!what.contains('\n'), "{what}");
    (line, what)
}

#[test]
fn a_signature_is_read() {
    let source = r#"
        #define KERNEL extern "C" \
            __global__ /* KERNEL int not_this(; */
        // KERNEL void nor_this(float x) {
        EXPORT constexpr int ROWS = 4;
        EXPORT constexpr int TILE = ROWS * (8 + 2);
        EXPORT constexpr float HALF = 0.5f;
        EXPORT constexpr unsigned BIT = 0x10u;
        KERNEL void __launch_bounds__(ROWS * 32, (1)) first(
            bf16* __restrict__ y, const bf16 *x, float* sums_or_null, const int* ids_or_null, const double* parts,
            int N, unsigned k, unsigned long long seed, float eps, const __grid_constant__ CUtensorMap map) { }
        PARAMS struct Draw {
            unsigned key0, key1;
            float scale() const { return key0 ? 1.0f : 2.0f; }
            unsigned long long first;  // of the step
            __device__ Draw(int a) { if (a) { first = 0; } }
        };
        KERNEL void second(const Draw draw) {}
        KERNELS(third, _d, D, (16, 128), __launch_bounds__(32, D > 16 ? 1 : 2), (float* X, int N) { third<D>(X, N); })
    "#;
    let array = |dtype, written, nullable| Kind::Array { dtype, written, nullable };
    let parameters = [
        ("y", array("Bf16", true, false)),
        ("x", array("Bf16", false, false)),
        ("sums", array("F32", true, true)),
        ("ids", array("I32", false, true)),
        ("parts", array("F64", false, false)),
        ("N", Kind::Scalar("i32")),
        ("k", Kind::Scalar("u32")),
        ("seed", Kind::Scalar("u64")),
        ("eps", Kind::Scalar("f32")),
        ("map", Kind::TensorMap),
    ];
    let parameters = parameters.map(|(name, kind)| (name.to_string(), kind)).to_vec();
    let entry = |name: &str, parameters| Entry { name: name.into(), family: None, parameters };
    let third = |value| Entry {
        name: format!("third_d{value}"),
        family: Some(Family { name: "third".into(), constant: "D".into(), value }),
        parameters: vec![("X".into(), array("F32", true, false)), ("N".into(), Kind::Scalar("i32"))],
    };
    let second = vec![("draw".to_string(), Kind::Params("Draw".into()))];
    let constant = |name: &str, kind, value: &str| (name.to_string(), kind, value.to_string());
    let expected = Unit {
        stem: "toy".into(),
        constants: vec![
            constant("ROWS", "i32", "4"),
            constant("TILE", "i32", "ROWS*(8+2)"),
            constant("HALF", "f32", "0.5"),
            constant("BIT", "u32", "0x10"),
        ],
        kernels: vec![entry("first", parameters), entry("second", second), third(16), third(128)],
    };
    assert_eq!(unit(source), expected);
    let fields = [("key0", "u32", 0), ("key1", "u32", 4), ("first", "u64", 8)];
    let fields = fields.map(|(name, kind, at)| (name.to_string(), kind, at)).to_vec();
    assert_eq!(params(source).unwrap(), [Params { name: "Draw".into(), fields, bytes: 16 }]);
}

#[test]
fn a_launcher_takes_its_arguments_by_their_names() {
    let text = launchers(&unit(
        "PARAMS struct Draw { float rate; };
         KERNEL void f_g(bf16* y, const float* x, float* s_or_null, const __grid_constant__ CUtensorMap m, int N, Draw d) {",
    ));
    for words in [
        "pub struct FG<'a> {",
        "pub y: &'a mut Tensor,",
        "pub x: &'a Tensor,",
        "pub s: Option<&'a mut Tensor>,",
        "pub m: &'a TensorMap,",
        "/// `N`.\n    pub n: i32,",
        "pub d: Draw,",
        "pub unsafe fn f_g(gpu: &Gpu, launch: Launch, arguments: FG) -> Result<()> {",
        "arguments.y.argument(gpu, \"y\", DType::Bf16)?, arguments.x.argument(gpu, \"x\", DType::F32)?",
        "None => Argument::Null",
        "Argument::Map(arguments.m), Argument::I32(arguments.n), Argument::Bytes(bytemuck::bytes_of(&arguments.d))]",
    ] {
        assert!(text.contains(words), "{words}:\n{text}");
    }
    syn::parse_file(&text).expect("valid Rust");
}

#[test]
fn kernels_that_differ_in_a_constant_have_one_launcher_that_chooses() {
    let text = launchers(&unit(
        "KERNELS(f, _d, D, (16, 128), __launch_bounds__(32), (float* y) { g<D>(y); })
         KERNELS(h, _, SIDE, (64, 32), , (float* y) { g<SIDE>(y); })",
    ));
    for words in [
        "pub const F: [i32; 2] = [16, 128];",
        "pub struct F<'a> {\n    /// `D`: which of the kernels.\n    pub d: i32,",
        "Kernel { name: \"f_d16\", file: &FILE }, Kernel { name: \"f_d128\", file: &FILE }",
        "F.iter().position(|&v| v == arguments.d)",
        "pub const H: [i32; 2] = [64, 32];",
        "pub side: i32,",
        "Kernel { name: \"h_64\", file: &FILE }",
    ] {
        assert!(text.contains(words), "{words}:\n{text}");
    }
    assert_eq!(text.matches("pub unsafe fn ").count(), 2, "{text}");
    syn::parse_file(&text).expect("valid Rust");
}

#[test]
fn a_struct_has_its_twin_and_its_layout_is_checked() {
    let [draw] = &params("PARAMS struct Draw { int N, m; double far; };").unwrap()[..] else { panic!() };
    let text = twin("a.cuh", draw);
    for words in [
        "#[repr(C)]",
        "pub struct Draw {\n    /// `N`.\n    pub n: i32,",
        "size_of::<Draw>() == 16",
        "offset_of!(Draw, n) == 0 && std::mem::offset_of!(Draw, m) == 4 && std::mem::offset_of!(Draw, far) == 8",
    ] {
        assert!(text.contains(words), "{words}:\n{text}");
    }
    syn::parse_file(&text).expect("valid Rust");
    // nvcc is asked as well.
    let text = layout(draw);
    assert!(text.starts_with("static_assert(sizeof(Draw) == 16, "), "{text}");
    assert!(text.contains("static_assert(__builtin_offsetof(Draw, far) == 8, "), "{text}");
    assert_eq!(text.lines().count(), 4);
}

/// Every PARAMS struct of `kernels/`.
fn known() -> Vec<Params> {
    let files = std::fs::read_dir(here("kernels")).unwrap().map(|e| e.unwrap().path());
    let sources = files.filter(|p| p.extension().is_some_and(|e| e == "cu" || e == "cuh"));
    sources.flat_map(|p| params(&std::fs::read_to_string(p).unwrap()).unwrap()).collect()
}

#[test]
fn a_malformed_kernel_is_one_clear_error() {
    for (source, line, says) in [
        ("KERNEL", 1, "expected `void`"),
        ("\nKERNEL int f(int x) {", 2, "expected `void`, got `int`"),
        ("KERNEL void f(int x", 1, "no `)`"),
        ("KERNEL void f(int x);", 1, "expected `{`, got `;`"),
        ("KERNEL void __launch_bounds__(32 f(int x) {", 1, "no `)`"),
        ("KERNEL void f(int x,) {", 1, "an empty parameter"),
        ("KERNEL void f(int x, int x) {", 1, "two parameters named `x`"),
        ("KERNEL void f(\n  half* x) {", 2, "`half * x`: expected a number"),
        ("KERNEL void f(float** x) {", 1, "`float * * x`"),
        ("KERNEL void f(float& x) {", 1, "`float & x`"),
        ("KERNEL void f(float) {", 1, "`float`"),
        ("KERNEL void f(int in) {", 1, "`in` is a word of Rust"),
        ("KERNEL void f(float* c, int C) {", 1, "`c` and `C` are one name in lower case"),
        ("KERNELS(f, _d, D, (16, 16), , (int x) {", 1, "KERNELS f: 16 twice"),
        ("KERNELS(f, _d, D, (16, y), , (int x) {", 1, "`y`, expected a number"),
        ("KERNELS(f, _d, D, (16, 32), , (int d) {", 1, "`d` and `D` are one name"),
        ("KERNELS(f, _d, D, (16), , int x) {", 1, "expected `(`, got `int`"),
        ("KERNEL void f() {}\nKERNELS(f, _d, D, (16, 32), , () {", 2, "a second one of this name"),
        ("KERNEL void f(Draw d) {", 1, "a PARAMS struct"),
        ("PARAMS class X {", 1, "expected `struct`"),
        ("PARAMS struct X { float* y; };", 1, "`float * y`, expected numbers only"),
        ("PARAMS struct X { float y[3]; };", 1, "`float y [ 3 ]`, expected numbers only"),
        ("PARAMS struct X { int y;\n int Y; };", 2, "one name in lower case"),
        ("PARAMS struct X { int y; double z; };", 1, "a gap before `z`"),
        ("PARAMS struct X { double z; int y; };", 1, "a gap at its end"),
        ("PARAMS struct X { };", 1, "no fields"),
        ("PARAMS struct X { int y;", 1, "no `}`"),
        ("KERNEL void f(int x_or_null) {", 1, "is no array"),
        ("KERNEL void f(CUtensorMap x) {", 1, "const __grid_constant__ CUtensorMap"),
        ("KERNEL void f() {}\nKERNEL void f() {}", 2, "a second one of this name"),
        ("EXPORT int N = 3;", 1, "expected `constexpr`"),
        ("EXPORT constexpr bool N = 3;", 1, "type `bool`"),
        ("EXPORT constexpr int N = M;", 1, "`M`, expected numbers"),
        ("EXPORT constexpr int N = ;", 1, "has no value"),
        ("EXPORT constexpr int N = 3", 1, "no `;`"),
    ] {
        let (at, what) = refused(source);
        assert!(what.contains(says), "{source}: {what}");
        assert_eq!(at, line, "{source}: {what}");
    }
}

proptest! {
    /// Whatever stands in a file, the answer is a value, and what was understood is Rust.
    #[test]
    fn nothing_makes_the_parser_panic(words in proptest::collection::vec(
        proptest::sample::select(vec![
            "KERNEL", "KERNELS", "PARAMS", "struct", "EXPORT", "void", "constexpr", "int", "float", "bf16", "const", "*", "(", ")", "{", "}", ",", ";",
            "=", "x", "y_or_null", "3", "0.5f", "__launch_bounds__", "__restrict__", "CUtensorMap", "\n", "//", "/*",
            "*/", "#", "\\", "é", "\"",
        ]), 0..40), apart in "[ \n]?")
    {
        let source = words.join(&apart);
        if let Ok(unit) = read(&source) {
            let twins: String = params(&source).unwrap().iter().map(|p| twin("toy", p)).collect();
            let text = twins + &launchers(&unit);
            prop_assert!(unit.kernels.is_empty() || syn::parse_file(&text).is_ok(), "{}", text);
        }
    }
}

#[test]
fn nvcc_is_sought_in_the_order_of_the_house() {
    let dir = tempfile::tempdir().unwrap();
    let make = |path: &str| {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "").unwrap();
        path
    };
    let venv = make("venv/lib/python3.11/site-packages/nvidia/cu13/bin/nvcc");
    let target = make("target/nvcc/nvidia/cu13/bin/nvcc");
    let env = |name: &str| match name {
        "NVCC" => Some("/a/nvcc".to_string()),
        "CUDA_HOME" => Some("/b".into()),
        "PATH" => Some("/c:/d".into()),
        "VIRTUAL_ENV" => Some(dir.path().join("venv").display().to_string()),
        _ => None,
    };
    let places = nvcc::places(env, &[dir.path().join("target/nvcc")]);
    let paths: Vec<PathBuf> = places.into_iter().map(|(_, path)| path).collect();
    let first =
        ["/a/nvcc", "/b/bin/nvcc", "/c/nvcc", "/d/nvcc", "/usr/local/cuda/bin/nvcc"].map(PathBuf::from);
    assert_eq!(paths, first.into_iter().chain([venv, target]).collect::<Vec<_>>());
    // What is not set is not sought; an empty variable is not set.
    let places = nvcc::places(|name| (name == "NVCC").then(String::new), &[]);
    assert_eq!(places.last().map(|(origin, _)| origin.as_str()), Some("/usr/local/cuda"));
    assert!(places.iter().all(|(origin, _)| origin != "$NVCC"));
}

#[cfg(unix)]
#[test]
fn an_nvcc_is_asked_for_its_version() {
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(nvcc::version("Cuda compilation tools, release 13.0, V13.0.88\n"), Some((13, 0)));
    assert_eq!(nvcc::version("release thirteen"), None);
    let dir = tempfile::tempdir().unwrap();
    let says = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, format!("#!/bin/sh\necho '{text}'\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        ("PATH".to_string(), path)
    };
    let nowhere = ("PATH".to_string(), dir.path().join("nowhere"));
    let good = says("good", "release 12.8, V12.8.1");
    let (old, mute) = (says("old", "release 12.6, V12.6.85"), says("mute", "hello"));
    // What will not do is passed over, and said.
    let (found, passed_over) =
        nvcc::find(&[nowhere.clone(), old.clone(), mute.clone(), good.clone()]).unwrap();
    let found = found.unwrap();
    assert_eq!((found.origin.as_str(), found.path, found.version), ("PATH", good.1, (12, 8)));
    assert_eq!(found.banner, "release 12.8, V12.8.1\n");
    assert!(passed_over[0].contains("is version 12.6, the kernels need 12.8 or newer"), "{passed_over:?}");
    assert!(passed_over[1].contains("does not tell its version"), "{passed_over:?}");
    assert!(nvcc::find(&[old.clone(), nowhere.clone()]).unwrap().0.is_none());
    // A compiler that the user names must be there and do.
    for (path, why) in [(old.1, "is version 12.6"), (mute.1, "its version"), (nowhere.1, "does not start")] {
        let named = nvcc::find(&[("$NVCC".into(), path)]).unwrap_err();
        assert!(named.contains(why) && named.contains("NVCC=none"), "{named}");
    }
}

#[cfg(unix)]
#[test]
fn nvcc_needs_a_compiler_of_the_hosts() {
    let dir = tempfile::tempdir().unwrap();
    let env = |name: &str| (name == "PATH").then(|| dir.path().display().to_string());
    assert!(!nvcc::host_compiler(env));
    assert!(nvcc::host_compiler(|name| (name == "NVCC_CCBIN").then(|| "clang++".into())));
    std::fs::write(dir.path().join("g++"), "").unwrap();
    assert!(nvcc::host_compiler(env));
}

/// The script takes what the build takes, and downloads nothing that is not asked for.
#[cfg(unix)]
#[test]
fn the_installer_agrees_with_the_build() {
    use std::os::unix::fs::PermissionsExt;
    if std::path::Path::new("/usr/local/cuda/bin/nvcc").exists() || !here("kernels/install_nvcc.sh").exists()
    {
        println!("skipped: this machine has an nvcc of its own");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let program = |name: &str, script: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path.display().to_string()
    };
    // Pip that cannot install says that it was asked.
    program("a b/python3", "case $* in *install*) echo asked >&2; exit 1 ;; esac");
    program("a b/gcc", "");
    let old = program("a b/nvcc", "echo 'release 12.6, V12.6.85'");
    let new = program("new/nvcc", "echo 'release 12.10, V12.10.1'");
    let run = |path: &[&str], set: &[(&str, &str)]| {
        let mut list: Vec<PathBuf> = path.iter().map(|name| dir.path().join(name)).collect();
        list.extend(["/usr/bin".into(), "/bin".into()]);
        let mut command = std::process::Command::new("sh");
        command.arg(here("kernels/install_nvcc.sh"));
        for name in ["NVCC", "CUDA_HOME", "VIRTUAL_ENV", "CONDA_PREFIX", "REQUIRE_NVCC", "NVCC_CCBIN"] {
            command.env_remove(name);
        }
        command
            .env("CARGO_TARGET_DIR", dir.path().join("target"))
            .env("PATH", std::env::join_paths(list).unwrap());
        let output = command.envs(set.iter().copied()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (status, said) = run(&["a b", "new"], &[]);
    assert!(status == Some(0) && said.contains(&format!("there is {new}")), "{said}");
    assert!(said.contains(&format!("passed over {old}")), "{said}");
    let (status, said) = run(&["a b"], &[]);
    assert!(status == Some(0) && said.contains("asked") && said.contains("pip could not install"), "{said}");
    let (status, said) = run(&["a b"], &[("REQUIRE_NVCC", "1")]);
    assert!(status == Some(1) && said.contains("pip could not install"), "{said}");
    for nvcc in ["none", &old] {
        let (status, said) = run(&["a b"], &[("NVCC", nvcc)]);
        assert!(status == Some(0) && !said.contains("asked"), "{said}");
        assert!(said.contains(&format!("NVCC={nvcc}")), "{said}");
    }
}

const LOG: &str = "ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'good' for 'sm_90'
ptxas info    : Function properties for good
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 76 registers, used 1 barriers, 256 bytes smem, 408 bytes cmem[0]
ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to x in function 'bad'
ptxas info    : Compiling entry function 'bad' for 'sm_90'
ptxas info    : Function properties for bad
    16 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 64 registers, used 0 barriers, 16 bytes cumulative stack size
";

#[test]
fn spills_and_serialised_wgmma_are_complaints_unless_allowed() {
    let (list, complaints) = nvcc::ptxas(LOG, "// rmsnorm\n");
    let resource = |kernel: &str, registers, shared, spilled| nvcc::Resource {
        kernel: kernel.into(),
        registers,
        shared,
        spilled,
    };
    assert_eq!(list, [resource("good", 76, 256, 0), resource("bad", 64, 0, 32)]);
    assert_eq!(complaints.len(), 2, "{complaints:?}");
    assert!(complaints[0].starts_with("bad its wgmma instructions are serialized"), "{complaints:?}");
    assert!(complaints[1].contains("16 bytes stack frame, 12 bytes spill stores"), "{complaints:?}");
    assert!(nvcc::ptxas(LOG, "// Allows    bad: the head is wide\n").1.is_empty());
    assert_eq!(nvcc::ptxas(LOG, "// Allows    bad:\n").1.len(), 2, "without a reason nothing is allowed");
    assert_eq!(nvcc::ptxas(LOG, "// Allows    good: why not\n").1.len(), 2);
}

#[test]
fn block_sizes_and_code_sizes_are_read() {
    let ptx = ".visible .entry first(\n.param .u64 a\n)\n.maxntid 32, 8, 1\n{ ret; }\n.visible .entry second()\n{ ret; }";
    assert_eq!(nvcc::most_threads(ptx, "first"), Some(256));
    assert_eq!(nvcc::most_threads(ptx, "second"), None);
    assert_eq!(nvcc::most_threads(ptx, "third"), None);
    // An ELF file of two sections: the names, and 0x77 bytes of `f`.
    let mut elf = vec![0; 0x40 + 2 * 0x40 + 32];
    let mut put = |at: usize, bytes: &[u8]| elf[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02");
    let header = [(0x28, 0x40), (0x3A, 0x40), (0x3C, 2), (0x3E, 0)];
    let sections = [(0x40 + 0x18, 0xC0), (0x80, 1), (0x80 + 0x20, 0x77)];
    header.iter().chain(&sections).for_each(|&(at, x)| put(at, &[x]));
    put(0xC0, b"\0.text.f\0");
    assert_eq!(nvcc::code_bytes(&elf, "f"), 0x77);
    assert_eq!(nvcc::code_bytes(&elf, "g"), 0);
    (0..elf.len()).for_each(|n| assert_eq!(nvcc::code_bytes(&elf[..n], "g"), 0, "cut at {n}"));
}

/// The head comment of every kernel file has the same parts, and every KERNEL bears its file's name.
#[test]
fn kernel_files_are_as_the_house_wants_them() {
    let (mut findings, known) = (Vec::new(), known());
    let mut stems = BTreeSet::new();
    for entry in std::fs::read_dir(here("kernels")).unwrap().map(|e| e.unwrap().path()) {
        if entry.extension().is_none_or(|e| e != "cu") {
            continue;
        }
        let (stem, text) = (
            entry.file_stem().unwrap().to_str().unwrap().to_string(),
            std::fs::read_to_string(&entry).unwrap(),
        );
        let head: Vec<&str> = text.lines().take_while(|l| l.starts_with("//")).collect();
        if !head.first().is_some_and(|l| l.starts_with(&format!("// {stem}: "))) {
            findings.push(format!("{stem}.cu: the first line does not say `// {stem}: …`"));
        }
        for part in ["Shapes", "Plan", "Cost", "Numerics", "Limits", "Source"] {
            if !head.iter().any(|l| l.starts_with(&format!("// {part:<10}"))) {
                findings.push(format!("{stem}.cu: the head has no `{part}`"));
            }
        }
        let unit = parse(&stem, &text, &known).unwrap();
        let noun = stem.trim_end_matches("_sm90").trim_end_matches("_fwd").trim_end_matches("_bwd");
        for kernel in &unit.kernels {
            if !kernel.name.starts_with(noun) {
                findings.push(format!("{stem}.cu: KERNEL {} is not named like its file", kernel.name));
            }
            // More than a reader keeps apart: what belongs together is a PARAMS struct.
            if kernel.parameters.len() > 13 {
                let count = kernel.parameters.len();
                findings
                    .push(format!("{stem}.cu: KERNEL {} has {count} parameters, of at most 13", kernel.name));
            }
        }
        let names: Vec<&str> = unit.kernels.iter().map(|k| k.name.as_str()).collect();
        match kernels::FILES.iter().find(|f| f.stem == stem) {
            Some(file) if file.kernels == names => {}
            _ => findings.push(format!("{stem}.cu: its launchers are not those of its KERNELs {names:?}")),
        }
        stems.insert(stem);
    }
    assert_eq!(kernels::FILES.len(), stems.len());
    assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
}

/// Where nvcc was there: an image for every target, and a table without spills.
#[test]
fn every_file_has_its_images_and_its_table() {
    if !answers::built() {
        return;
    }
    for file in kernels::FILES {
        let (ptx, cubins) = nvcc::targets(file.stem);
        let built: Vec<&str> = file.images.iter().map(|i| i.target).collect();
        assert_eq!(built, cubins.iter().copied().chain([ptx]).collect::<Vec<_>>(), "{}", file.stem);
        for image in file.images {
            match image.target.starts_with("sm_") {
                true => assert!(image.bytes.starts_with(b"\x7fELF"), "{} {}", file.stem, image.target),
                false => {
                    let text = std::str::from_utf8(image.bytes).unwrap().strip_suffix('\0').unwrap();
                    assert!(
                        text.contains(&format!(".target {}", ptx.replace("compute", "sm"))),
                        "{}",
                        file.stem
                    );
                    // What an error is reported by: the same name on every machine.
                    assert!(text.contains(&format!("\"kernels/{}.cu\"", file.stem)), "{}", file.stem);
                    assert!(
                        file.kernels.iter().all(|k| text.contains(&format!(".entry {k}("))),
                        "{}",
                        file.stem
                    );
                }
            }
        }
        assert_eq!(file.resources.len(), file.kernels.len() * cubins.len(), "{}", file.stem);
        for r in file.resources {
            assert!(r.registers > 0 && r.registers <= 255 && r.code > 0, "{} {}", r.kernel, r.target);
            assert!((32..=1024).contains(&r.threads), "{}: no __launch_bounds__", r.kernel);
            assert_eq!(r.spilled, 0, "{} {}", r.kernel, r.target);
            let (blocks, part) = r.occupancy(r.threads, 0);
            assert!(blocks >= 1 && part <= 1.0, "{} {}: {blocks} blocks", r.kernel, r.target);
        }
    }
}
