//! `kernels/*.cu` to cubins, PTX and typed launchers. Without nvcc the launchers are written all the same, with no images.

#[path = "src/kernels/build/launcher.rs"]
mod launcher;
#[path = "src/kernels/build/nvcc.rs"]
mod nvcc;
#[path = "src/kernels/build/signature.rs"]
mod signature;

use nvcc::Nvcc;
use std::collections::hash_map::DefaultHasher;
use std::fmt::Write as _;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Mutex;

/// Read by the compiler of every file; a change compiles them all anew.
const FLAGS: &[&str] = &["-std=c++17", "-O3", "-lineinfo"];

type Result<T> = std::result::Result<T, String>;

/// One `.cu` file, read.
struct Source {
    unit: signature::Unit,
    text: String,
}

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<()> {
    println!("cargo:rerun-if-changed=kernels");
    println!("cargo:rerun-if-changed=src/kernels/build");
    println!("cargo:rerun-if-changed=build.rs");
    for name in ["NVCC", "CUDA_HOME", "VIRTUAL_ENV", "CONDA_PREFIX", "REQUIRE_NVCC", "NVCC_CCBIN"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    commit();
    let out = PathBuf::from(std::env::var("OUT_DIR").map_err(|e| format!("OUT_DIR: {e}"))?);
    let params = params()?;
    let known: Vec<signature::Params> = params.iter().map(|(_, params)| params.clone()).collect();
    let sources = sources(&known)?;
    let compiler = compiler(&out)?;
    let mut tables = vec![String::new(); sources.len()];
    if let Some(nvcc) = &compiler {
        compare_layouts(nvcc, &params, &out)?;
        tables = compile_all(nvcc, &sources, &out)?;
        println!("cargo:rustc-env=LLM2VEC_NVCC={}.{}", nvcc.version.0, nvcc.version.1);
    }
    let mut text: String = params.iter().map(|(file, params)| launcher::twin(file, params)).collect();
    for (source, resources) in sources.iter().zip(&tables) {
        text += &module(source, compiler.is_some(), resources);
    }
    let files: Vec<String> = sources.iter().map(|s| format!("&{}::FILE", s.unit.stem)).collect();
    writeln!(text, "/// Every file of `kernels/`.\npub static FILES: &[&File] = &[{}];", files.join(", "))
        .unwrap();
    write(&out.join("kernels.rs"), text.as_bytes())
}

/// The commit that is built, for the records of benches: $LLM2VEC_COMMIT, or else what git says where this folder is the
/// top of its work tree.
fn commit() {
    println!("cargo:rerun-if-env-changed=LLM2VEC_COMMIT");
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).output().ok().filter(|o| o.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_string())
    };
    if let Some(named) = std::env::var("LLM2VEC_COMMIT").ok().filter(|v| !v.is_empty()) {
        println!("cargo:rustc-env=BUILD_COMMIT={named}");
        return;
    }
    if git(&["rev-parse", "--show-prefix"]).is_none_or(|below| !below.is_empty()) {
        return;
    }
    // Asked anew with every change of the sources and of the branch. To commit what was built builds nothing: until then
    // it stays the commit before, dirty.
    let head = git(&["rev-parse", "--git-path", "HEAD"]);
    for path in head.into_iter().chain(["src", "Cargo.toml", "Cargo.lock"].map(String::from)) {
        println!("cargo:rerun-if-changed={path}");
    }
    if let Some(commit) = git(&["describe", "--always", "--dirty"]) {
        println!("cargo:rustc-env=BUILD_COMMIT={commit}");
    }
}

/// The files of `kernels/` with these endings, in the order of names, and what stands in them.
fn files(endings: &[&str]) -> Result<Vec<(PathBuf, String)>> {
    let list = std::fs::read_dir("kernels").map_err(|e| format!("kernels: {e}"))?;
    let mut paths: Vec<PathBuf> = list.flatten().map(|e| e.path()).collect();
    paths.retain(|p| p.extension().is_some_and(|e| endings.iter().any(|ending| e == *ending)));
    paths.sort();
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        Ok((path, text))
    };
    paths.into_iter().map(read).collect()
}

/// Every PARAMS struct, with its file's name.
fn params() -> Result<Vec<(String, signature::Params)>> {
    let mut all: Vec<(String, signature::Params)> = Vec::new();
    for (path, text) in files(&["cu", "cuh"])? {
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let list =
            signature::params(&text).map_err(|e| format!("{}:{}: {}", path.display(), e.line, e.what))?;
        for params in list {
            if let Some((other, _)) = all.iter().find(|(_, p)| p.name == params.name) {
                return Err(format!("kernels/{file} and kernels/{other}: two PARAMS {}", params.name));
            }
            all.push((file.clone(), params));
        }
    }
    Ok(all)
}

/// Has nvcc say that every PARAMS struct lies in memory as its twin does.
fn compare_layouts(nvcc: &Nvcc, params: &[(String, signature::Params)], out: &Path) -> Result<()> {
    let mut files: Vec<&str> = params.iter().map(|(file, _)| file.as_str()).collect();
    files.sort_unstable();
    files.dedup();
    let mut text: String = files.iter().map(|file| format!("#include \"{file}\"\n")).collect();
    params.iter().for_each(|(_, params)| text += &launcher::layout(params));
    let (from, stamp) = (out.join("params.cu"), out.join("params.key"));
    write(&from, text.as_bytes())?;
    let source = Source { unit: signature::Unit { stem: "params".into(), ..Default::default() }, text };
    let key = key(nvcc, &source)?;
    if std::fs::read_to_string(&stamp).is_ok_and(|old| old == key) {
        return Ok(());
    }
    let options = ["-arch=compute_80", "-Ikernels", "-ptx"];
    run(nvcc, FLAGS, &options, &from.to_string_lossy(), &out.join("params.ptx"))?;
    write(&stamp, key.as_bytes())
}

/// Every `kernels/*.cu`, in the order of names.
fn sources(known: &[signature::Params]) -> Result<Vec<Source>> {
    let read = |(path, text): (PathBuf, String)| {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let unit = signature::parse(&stem, &text, known)
            .map_err(|e| format!("{}:{}: {}", path.display(), e.line, e.what))?;
        Ok(Source { unit, text })
    };
    files(&["cu"])?.into_iter().map(read).collect()
}

/// The nvcc to use; says which, or what there is to do.
fn compiler(out: &Path) -> Result<Option<Nvcc>> {
    let required = std::env::var("REQUIRE_NVCC").is_ok_and(|v| !["", "0"].contains(&v.as_str()));
    let env = |name: &str| std::env::var(name).ok();
    let mut found = None;
    if env("NVCC").as_deref() != Some("none") {
        // Project-local environments, and what kernels/install_nvcc.sh puts beside the profile's folder.
        let target = out.ancestors().map(|dir| dir.join("nvcc"));
        let roots: Vec<PathBuf> = [".venv".into(), "venv".into()].into_iter().chain(target).collect();
        let passed_over;
        (found, passed_over) = nvcc::find(&nvcc::places(env, &roots))?;
        passed_over.iter().for_each(|why| println!("cargo:warning=passed over: {why}"));
    }
    let lacks = match &found {
        None => {
            "no nvcc in $NVCC, $CUDA_HOME, PATH, /usr/local/cuda or pip's wheels; try kernels/install_nvcc.sh"
        }
        Some(_) if !nvcc::host_compiler(env) => "no gcc in PATH, which nvcc calls; NVCC_CCBIN names another",
        Some(nvcc) => {
            let (major, minor) = nvcc.version;
            println!("cargo:warning=kernels by nvcc {major}.{minor} of {}", nvcc.origin);
            return Ok(found);
        }
    };
    if required {
        return Err(format!("REQUIRE_NVCC is set and there is {lacks}"));
    }
    println!("cargo:warning={lacks}; this build has no CUDA kernels and runs on the CPU");
    Ok(None)
}

/// Compiles what changed, one file a worker; gives each file's resource table as Rust.
fn compile_all(nvcc: &Nvcc, sources: &[Source], out: &Path) -> Result<Vec<String>> {
    let workers = std::env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let next = Mutex::new(0..sources.len());
    let results: Mutex<Vec<Result<String>>> = Mutex::new(vec![Ok(String::new()); sources.len()]);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                let take = || next.lock().unwrap_or_else(|e| e.into_inner()).next();
                while let Some(i) = take() {
                    let result = compile(nvcc, &sources[i], out);
                    results.lock().unwrap_or_else(|e| e.into_inner())[i] = result;
                }
            });
        }
    });
    let results = results.into_inner().unwrap_or_else(|e| e.into_inner());
    let failed: Vec<&str> = results.iter().filter_map(|r| r.as_ref().err().map(String::as_str)).collect();
    if !failed.is_empty() {
        return Err(failed.join("\n"));
    }
    results.into_iter().collect()
}

/// One file to PTX, and the PTX to every cubin: what the emulator runs is what ptxas turned into each of them.
fn compile(nvcc: &Nvcc, source: &Source, out: &Path) -> Result<String> {
    let stem = &source.unit.stem;
    let (virtual_, real) = nvcc::targets(stem);
    let key = key(nvcc, source)?;
    let (stamp, table) = (out.join(format!("{stem}.key")), out.join(format!("{stem}.resources")));
    if std::fs::read_to_string(&stamp).is_ok_and(|old| old == key) {
        return std::fs::read_to_string(&table).map_err(|e| format!("{}: {e}", table.display()));
    }
    let _ = std::fs::remove_file(&stamp);
    let ptx = out.join(format!("{stem}.{virtual_}.ptx"));
    let arch = format!("-arch={virtual_}");
    run(nvcc, FLAGS, &[&arch, "-ptx"], &format!("kernels/{stem}.cu"), &ptx)?;
    // Line information names files from the crate's root: the same on every machine.
    let here =
        format!("{}/", std::env::var("CARGO_MANIFEST_DIR").map_err(|e| format!("CARGO_MANIFEST_DIR: {e}"))?);
    let text =
        std::fs::read_to_string(&ptx).map_err(|e| format!("{}: {e}", ptx.display()))?.replace(&here, "");
    write(&ptx, text.as_bytes())?;
    let mut resources = String::new();
    for target in real {
        let cubin = out.join(format!("{stem}.{target}.cubin"));
        let options = [&format!("-arch={target}"), "-cubin", "-lineinfo", "-Xptxas=-v"];
        let log = run(nvcc, &[], &options, &ptx.to_string_lossy(), &cubin)?;
        let (list, complaints) = nvcc::ptxas(&log, &source.text);
        if !complaints.is_empty() {
            return Err(format!(
                "kernels/{stem}.cu on {target}: {}; mend it, or say in its header `// Allows    NAME: why`",
                complaints.join("; ")
            ));
        }
        let code = std::fs::read(&cubin).map_err(|e| format!("{}: {e}", cubin.display()))?;
        for r in list {
            let threads = nvcc::most_threads(&text, &r.kernel).unwrap_or(0);
            writeln!(
                resources,
                "Resource {{ kernel: \"{}\", target: \"{target}\", registers: {}, shared: {}, spilled: {}, \
                 threads: {threads}, code: {} }},",
                r.kernel,
                r.registers,
                r.shared,
                r.spilled,
                nvcc::code_bytes(&code, &r.kernel)
            )
            .unwrap();
        }
    }
    // The driver takes PTX as a C string.
    write(&ptx, format!("{text}\0").as_bytes())?;
    write(&table, resources.as_bytes())?;
    write(&stamp, key.as_bytes())?;
    Ok(resources)
}

/// Runs nvcc and gives what it said on stderr.
fn run(nvcc: &Nvcc, flags: &[&str], more: &[&str], from: &str, to: &Path) -> Result<String> {
    let mut command = Command::new(&nvcc.path);
    let output = command.args(flags).args(more).arg(from).arg("-o").arg(to).output();
    let output = output.map_err(|e| format!("{}: {e}", nvcc.path.display()))?;
    let said =
        [&output.stdout[..], &output.stderr[..]].map(|b| String::from_utf8_lossy(b).into_owned()).concat();
    match output.status.success() {
        true => Ok(said),
        false => Err(format!("nvcc cannot compile {from}:\n{}", said.trim_end())),
    }
}

/// All that a file's images depend on.
fn key(nvcc: &Nvcc, source: &Source) -> Result<String> {
    let mut hash = DefaultHasher::new();
    (&nvcc.banner, FLAGS, include_str!("build.rs"), include_str!("src/kernels/build/nvcc.rs"), &source.text)
        .hash(&mut hash);
    let (mut waiting, mut seen) = (vec![source.text.clone()], Vec::new());
    while let Some(text) = waiting.pop() {
        for line in text.lines() {
            let name = line.trim().strip_prefix("#include \"").and_then(|rest| rest.strip_suffix('"'));
            let Some(name) = name.map(str::to_string).filter(|n| !seen.contains(n)) else { continue };
            let path = Path::new("kernels").join(&name);
            let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
            (&name, &text).hash(&mut hash);
            seen.push(name);
            waiting.push(text);
        }
    }
    Ok(format!("{:016x}", hash.finish()))
}

/// The Rust module of one file.
fn module(source: &Source, compiled: bool, resources: &str) -> String {
    let stem = &source.unit.stem;
    let (virtual_, real) = nvcc::targets(stem);
    let cubins = real.iter().map(|target| (*target, "cubin"));
    let images: Vec<String> = cubins
        .chain([(virtual_, "ptx")])
        .filter(|_| compiled)
        .map(|(target, kind)| {
            format!(
                "Image {{ target: \"{target}\", bytes: include_bytes!(concat!(env!(\"OUT_DIR\"), \
                 \"/{stem}.{target}.{kind}\")) }}"
            )
        })
        .collect();
    let names: Vec<String> = source.unit.kernels.iter().map(|k| format!("\"{}\"", k.name)).collect();
    format!(
        "/// Launchers of kernels/{stem}.cu.\n\
         pub mod {stem} {{\n\
         use super::*;\n\
         /// Its images.\n\
         pub static FILE: File = File {{ stem: \"{stem}\", kernels: &[{}], images: &[{}], resources: &[{resources}] }};\n\
         {}}}\n",
        names.join(", "),
        images.join(", "),
        launcher::launchers(&source.unit)
    )
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(path, bytes).map_err(|e| format!("{}: {e}", path.display()))
}
