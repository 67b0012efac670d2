//! The library of `shim.c` under a command: one call of it fails, or kills it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

/// What a call meets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// No space left: of the calls that take some.
    Full,
    /// Permission denied: of the calls that make, change or remove a name.
    Denied,
    /// A read-only file system: of the same.
    Readonly,
    /// The device's own error: of any call.
    Io,
    /// The process is killed.
    Kill,
}

/// Compiled once a process, by the C compiler that Rust links with.
static LIBRARY: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (made, library) = (folder.join(format!("shim-{}.so", std::process::id())), folder.join("shim.so"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/all/faults/shim.c");
    let flags = ["-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o"];
    let compiled = Command::new("cc").args(flags).arg(&made).arg(source).status().expect("cc");
    assert!(compiled.success());
    fs::rename(&made, &library).unwrap();
    library
});

/// A call that counts: what it is, and on what.
pub struct Call {
    pub name: String,
    pub path: String,
}

/// Lets the call of this number, from 1, that `command` makes below `folder` fail, with `stays` all after it too; 0 is none.
/// The calls are written to `log`.
pub fn under(command: &mut Command, folder: &Path, fault: Fault, (call, stays): (usize, bool), log: &Path) {
    let kind = format!("{fault:?}").to_lowercase();
    command.env("LD_PRELOAD", &*LIBRARY).env("FAULT_BELOW", folder).env("FAULT_KIND", kind);
    // What is kept beside the output, as a corpus' blocks are, counts too.
    command.env("TMPDIR", folder);
    command.env("FAULT_CALL", call.to_string()).env("FAULT_LOG", log);
    if stays {
        command.env("FAULT_STAYS", "1");
    }
}

/// The calls of a log.
pub fn calls(log: &Path) -> Vec<Call> {
    let text = fs::read_to_string(log).unwrap();
    let each = text.lines().map(|line| {
        let mut parts = line.splitn(3, ' ').skip(1).map(String::from);
        Call { name: parts.next().unwrap(), path: parts.next().unwrap() }
    });
    each.collect()
}
