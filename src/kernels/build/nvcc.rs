//! Finds nvcc, runs it, and reads what ptxas says: `build.rs` and the tests include it.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The oldest nvcc that knows sm_120.
pub const OLDEST: (u32, u32) = (12, 8);

/// A compiler that answered.
#[derive(Clone, Debug)]
pub struct Nvcc {
    /// The program.
    pub path: PathBuf,
    /// Where it was found, for the user.
    pub origin: String,
    /// `(13, 0)`.
    pub version: (u32, u32),
    /// All that it says of itself.
    pub banner: String,
}

/// The places where nvcc may be, in the order in which they are tried: (what to call it, the program).
pub fn places(env: impl Fn(&str) -> Option<String>, roots: &[PathBuf]) -> Vec<(String, PathBuf)> {
    let mut list = Vec::new();
    let set = |name: &str| env(name).filter(|v| !v.is_empty());
    list.extend(set("NVCC").map(|v| ("$NVCC".into(), v.into())));
    list.extend(set("CUDA_HOME").map(|v| ("$CUDA_HOME".into(), Path::new(&v).join("bin/nvcc"))));
    let path = set("PATH").unwrap_or_default();
    list.extend(std::env::split_paths(&path).map(|dir| ("PATH".into(), dir.join("nvcc"))));
    list.push(("/usr/local/cuda".into(), "/usr/local/cuda/bin/nvcc".into()));
    for name in ["VIRTUAL_ENV", "CONDA_PREFIX"] {
        let found = set(name).into_iter().flat_map(|v| wheels(Path::new(&v)));
        list.extend(found.map(|nvcc| (format!("${name}"), nvcc)));
    }
    for root in roots {
        list.extend(wheels(root).into_iter().map(|nvcc| (root.display().to_string(), nvcc)));
    }
    list
}

/// nvcc in the pip wheels below an environment, or below a folder that `pip --target` filled.
fn wheels(root: &Path) -> Vec<PathBuf> {
    let inside = |dir: &Path| -> Vec<PathBuf> {
        let mut list: Vec<_> =
            std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect();
        list.sort();
        list
    };
    let packages = inside(&root.join("lib")).into_iter().map(|python| python.join("site-packages"));
    let nvidia = packages.chain([root.to_path_buf()]).map(|packages| packages.join("nvidia"));
    let programs = nvidia.flat_map(|dir| inside(&dir)).map(|toolkit| toolkit.join("bin/nvcc"));
    programs.filter(|nvcc| nvcc.is_file()).collect()
}

/// `release 13.0, V13.0.88` in the words of `nvcc --version`.
pub fn version(banner: &str) -> Option<(u32, u32)> {
    let release = banner.split("release ").nth(1)?.split([',', ' ', '\n']).next()?;
    let (major, minor) = release.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The first place that holds an nvcc which will do, and what is wrong with those before it. One that is named by `$NVCC`
/// must do.
pub fn find(places: &[(String, PathBuf)]) -> Result<(Option<Nvcc>, Vec<String>), String> {
    let mut passed_over = Vec::new();
    for (origin, path) in places {
        if !path.is_file() && origin != "$NVCC" {
            continue;
        }
        match ask(origin, path) {
            Ok(nvcc) => return Ok((Some(nvcc), passed_over)),
            Err(why) if origin == "$NVCC" => {
                return Err(format!("{why}: set NVCC to another, or NVCC=none to build without"));
            }
            Err(why) => passed_over.push(why),
        }
    }
    Ok((None, passed_over))
}

/// What an nvcc says of itself, if it is new enough.
fn ask(origin: &str, path: &Path) -> Result<Nvcc, String> {
    let at = format!("nvcc of {origin} ({})", path.display());
    let output =
        Command::new(path).arg("--version").output().map_err(|e| format!("{at} does not start: {e}"))?;
    let banner = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = version(&banner).ok_or_else(|| format!("{at} does not tell its version"))?;
    if version < OLDEST {
        return Err(format!(
            "{at} is version {}.{}, the kernels need {}.{} or newer",
            version.0, version.1, OLDEST.0, OLDEST.1
        ));
    }
    Ok(Nvcc { path: path.to_path_buf(), origin: origin.into(), version, banner })
}

/// Whether the C++ compiler is there that nvcc calls: gcc, unless the environment names another.
pub fn host_compiler(env: impl Fn(&str) -> Option<String>) -> bool {
    let named = ["NVCC_CCBIN", "NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"];
    let path = env("PATH").unwrap_or_default();
    let holds = |dir: PathBuf| ["gcc", "g++"].iter().any(|name| dir.join(name).is_file());
    cfg!(windows) || named.iter().any(|name| env(name).is_some()) || std::env::split_paths(&path).any(holds)
}

/// The virtual architecture of a file's PTX and the real ones of its cubins.
pub fn targets(stem: &str) -> (&'static str, &'static [&'static str]) {
    match stem.ends_with("_sm90") {
        true => ("compute_90a", &["sm_90a"]),
        false => ("compute_80", &["sm_80", "sm_90", "sm_120"]),
    }
}

/// What a kernel takes on one target.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resource {
    /// The kernel.
    pub kernel: String,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of shared memory that it declares.
    pub shared: u32,
    /// Bytes of stack and of spilled registers.
    pub spilled: u32,
}

/// Reads `ptxas -v`: one entry for each kernel, and the complaints that make a build fail.
///
/// A header that says `Allows    NAME: why` takes the kernel NAME out of the complaints.
pub fn ptxas(log: &str, source: &str) -> (Vec<Resource>, Vec<String>) {
    let (mut list, mut complaints) = (Vec::<Resource>::new(), Vec::new());
    let before = |line: &str, words: &str| -> u32 {
        let number = line.split(words).next().filter(|_| line.contains(words));
        let number = number.and_then(|text| text.trim_end().rsplit([' ', ',']).next());
        number.and_then(|n| n.parse().ok()).unwrap_or(0)
    };
    let quoted = |line: &str| line.split('\'').nth(1).unwrap_or("?").to_string();
    for line in log.lines() {
        if line.contains("Compiling entry function") {
            list.push(Resource { kernel: quoted(line), ..Resource::default() });
        } else if line.contains("wgmma") && line.contains("serialized") {
            complaints.push((quoted(line), "its wgmma instructions are serialized".to_string()));
        } else if let Some(last) = list.last_mut() {
            if line.contains("bytes stack frame") {
                let spills = before(line, " bytes spill stores") + before(line, " bytes spill loads");
                last.spilled = spills.max(before(line, " bytes stack frame"));
                if last.spilled > 0 {
                    complaints
                        .push((last.kernel.clone(), format!("spills registers or has a stack frame:{line}")));
                }
            } else if line.contains(" registers") {
                last.registers = before(line, " registers");
                last.shared = before(line, " bytes smem");
            }
        }
    }
    let allowed = |kernel: &str| {
        source.lines().any(|l| {
            let rule = l.strip_prefix("// Allows").and_then(|rule| rule.split_once(':'));
            rule.is_some_and(|(name, why)| name.trim() == kernel && !why.trim().is_empty())
        })
    };
    let complaints = complaints.into_iter().filter(|(kernel, _)| !allowed(kernel));
    (list, complaints.map(|(kernel, what)| format!("{kernel} {what}")).collect())
}

/// Threads of a block that `__launch_bounds__` promises, from the PTX of a kernel.
pub fn most_threads(ptx: &str, kernel: &str) -> Option<u32> {
    let entry =
        ptx.split(".entry ").find(|e| e.split('(').next().is_some_and(|name| name.trim() == kernel))?;
    let rest = entry.split('{').next()?.split(".maxntid ").nth(1)?;
    let sizes: Option<Vec<u32>> =
        rest.lines().next()?.split(',').map(|n| n.split_whitespace().next()?.parse().ok()).collect();
    sizes.map(|s| s.iter().product())
}

/// Bytes of a kernel's machine code in a cubin (its section `.text.NAME`), 0 where it is no 64-bit ELF file.
pub fn code_bytes(cubin: &[u8], kernel: &str) -> u64 {
    let read = |at: usize, bytes: usize| -> Option<u64> {
        let raw = cubin.get(at..at.checked_add(bytes)?)?;
        Some(raw.iter().rev().fold(0, |value, &b| value << 8 | u64::from(b)))
    };
    let find = || -> Option<u64> {
        let headers = read(0x28, 8).filter(|_| cubin.starts_with(b"\x7fELF\x02"))? as usize;
        let (size, count, names) =
            (read(0x3A, 2)? as usize, read(0x3C, 2)? as usize, read(0x3E, 2)? as usize);
        let header = |i: usize| headers.checked_add(i * size);
        let names = read(header(names)? + 0x18, 8)? as usize;
        let wanted = format!(".text.{kernel}\0");
        let is = |h: usize| {
            let at = names.checked_add(read(h, 4)? as usize)?;
            (cubin.get(at..at.checked_add(wanted.len())?)? == wanted.as_bytes()).then_some(h)
        };
        (0..count).filter_map(header).find_map(is).and_then(|h| read(h + 0x20, 8))
    };
    find().unwrap_or(0)
}
