//! What the operating system allows this process and does to it: limits of memory, ignored signals, faults of the machine.
//!
//! A file that shrinks under its memory map, or memory that runs out, is told in one line by the thread that it happens
//! to, with nothing but calls that are allowed there; a thread that waits for it ends the process ([`watch_faults`]).
#![allow(unsafe_code)]

use super::cpu::memory;
use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

/// Bytes of memory that this process can still take, by whichever limit is the nearest; `None` where none is known.
pub fn available() -> Option<u64> {
    let left = |limit: &str, used: &str| {
        let used = memory("/proc/self/status", used)?;
        Some(process_limit(limit)?.saturating_sub(used))
    };
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = [
        memory("/proc/meminfo", "MemAvailable:"),
        left("Max address space", "VmSize:"),
        left("Max data size", "VmData:"),
        group_memory(Path::new("/sys/fs/cgroup"), &own),
    ];
    limits.into_iter().flatten().min()
}

/// A soft limit of `/proc/self/limits`, in bytes.
fn process_limit(name: &str) -> Option<u64> {
    let table = fs::read_to_string("/proc/self/limits").ok()?;
    let line = table.lines().find_map(|l| l.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok() // or "unlimited"
}

/// What the control groups that hold this process leave it: its own and all above, of version 2 or 1. `own` is the text
/// of `/proc/self/cgroup`; in a container its paths may be the host's, and only the root is there.
fn group_memory(root: &Path, own: &str) -> Option<u64> {
    let mut least = None;
    for line in own.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (root, limit, usage) = match controllers {
            "" => (root.to_path_buf(), "memory.max", "memory.current"),
            c if c.split(',').any(|c| c == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes", "memory.usage_in_bytes")
            }
            _ => continue,
        };
        let deepest = root.join(path.trim_start_matches('/'));
        for folder in deepest.ancestors().take_while(|f| f.starts_with(&root)) {
            let figure = |name: &str| fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
            let (Some(limit), Some(used)) = (figure(limit), figure(usage)) else { continue };
            // Cached files count as used, and give way.
            let table = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
            let cached = |key: &str| {
                let line = table.lines().find_map(|l| l.strip_prefix(key));
                line.and_then(|l| l.trim().parse::<u64>().ok()).unwrap_or(0)
            };
            let used = used.saturating_sub(cached("inactive_file ") + cached("active_file "));
            let left = limit.saturating_sub(used);
            least = Some(least.map_or(left, |l: u64| l.min(left)));
        }
    }
    least
}

/// Whether this process ignores a signal, as one under `nohup` does SIGHUP.
pub fn is_ignored(signal: i32) -> bool {
    let table = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = table.lines().find_map(|l| l.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|m| u64::from_str_radix(m.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 == 1
}

/// Where a byte wakes the thread that ends the process; -1 where there is none.
static WAKING: AtomicI32 = AtomicI32::new(-1);
static FAULT: AtomicBool = AtomicBool::new(false);

/// Whether a fault has been told, and the process is to end with status 1.
pub fn has_fault() -> bool {
    FAULT.load(Ordering::SeqCst)
}

/// From now on, a fault writes its line and one byte to `waking`; whoever reads it is to end the process. A file that
/// grows past its limit becomes an error of the write.
#[cfg(target_os = "linux")]
pub fn watch_faults(waking: std::os::fd::OwnedFd) {
    use std::os::fd::IntoRawFd;
    WAKING.store(waking.into_raw_fd(), Ordering::SeqCst);
    // SAFETY: the action is zeros, its mask then empty, but for a handler of the type that SA_SIGINFO asks for, which
    // makes only calls that are allowed in one.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_bus_error as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
    }
}

/// Elsewhere faults have the system's own end.
#[cfg(all(unix, not(target_os = "linux")))]
pub fn watch_faults(waking: std::os::fd::OwnedFd) {
    std::mem::forget(waking);
}

#[cfg(target_os = "linux")]
extern "C" fn on_bus_error(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel gives the handler of a SIGBUS a valid structure with an address.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    if code == libc::BUS_ADRERR {
        let name = super::mapped::name_at(address).unwrap_or(b"a file");
        end(&[name, b": was cut short while it was read; leave the files of a run alone, and run again"]);
    }
    // None of ours: the same access again, without a handler.
    // SAFETY: restores the default action.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
}

/// Says it, once for all threads, and waits for the end that the woken thread makes.
#[cfg(target_os = "linux")]
fn end(parts: &[&[u8]]) -> ! {
    if !FAULT.swap(true, Ordering::SeqCst) {
        let mut line = [0; 2048];
        let mut used = 0;
        for part in [&b"error: "[..]].iter().chain(parts).chain(&[&b"\n"[..]]) {
            let n = part.len().min(line.len() - used);
            line[used..used + n].copy_from_slice(&part[..n]);
            used += n;
        }
        // SAFETY: the bytes are initialised, and of a buffer that outlives the call; the descriptors are merely numbers.
        let woken = unsafe {
            libc::write(2, line.as_ptr().cast(), used);
            libc::write(WAKING.load(Ordering::SeqCst), [1u8].as_ptr().cast(), 1) == 1
        };
        if !woken {
            // SAFETY: ends the process.
            unsafe { libc::_exit(1) };
        }
    }
    // SAFETY: waits, longer than the other thread needs, and ends the process.
    unsafe {
        libc::sleep(10);
        libc::_exit(1)
    }
}

/// The system's allocator, whose failure is one line and exit status 1 instead of an abort.
pub struct Allocator {
    /// What to try: it is said when nothing can be allocated any more.
    pub hint: &'static str,
}

fn checked(memory: *mut u8, bytes: usize, hint: &str) -> *mut u8 {
    #[cfg(target_os = "linux")]
    if memory.is_null() {
        let mut digits = [0; 20];
        let mut at = digits.len();
        let mut left = bytes;
        while left > 0 || at == digits.len() {
            at -= 1;
            digits[at] = b'0' + (left % 10) as u8;
            left /= 10;
        }
        let limit = b" bytes more; raise the limit (ulimit -v, or the container's), or try ";
        end(&[b"out of memory: the system refused ", &digits[at..], limit, hint.as_bytes()]);
    }
    let _ = (bytes, hint);
    memory
}

// SAFETY: every call is the system allocator's, whose contract is the same; a null pointer is not returned but ends the
// process.
unsafe impl GlobalAlloc for Allocator {
    // SAFETY: as the trait says; handed on.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise about the layout is this call's.
        checked(unsafe { System.alloc(layout) }, layout.size(), self.hint)
    }

    // SAFETY: as the trait says; handed on.
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the memory came from `System`, with this layout.
        unsafe { System.dealloc(memory, layout) }
    }

    // SAFETY: as the trait says; handed on.
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise about the layout is this call's.
        checked(unsafe { System.alloc_zeroed(layout) }, layout.size(), self.hint)
    }

    // SAFETY: as the trait says; handed on.
    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // SAFETY: the memory came from `System`, with this layout; the caller vouches for the size.
        checked(unsafe { System.realloc(memory, layout, bytes) }, bytes, self.hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_control_group_limits() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let put = |folder: &str, limit: &str, used: &str, cached: &str| {
            let folder = root.join(folder);
            fs::create_dir_all(&folder).unwrap();
            let v1 = folder.starts_with(root.join("memory"));
            let names = if v1 {
                ["memory.limit_in_bytes", "memory.usage_in_bytes"]
            } else {
                ["memory.max", "memory.current"]
            };
            fs::write(folder.join(names[0]), limit).unwrap();
            fs::write(folder.join(names[1]), used).unwrap();
            fs::write(folder.join("memory.stat"), format!("anon 5\ninactive_file {cached}\nactive_file 7\n"))
                .unwrap();
        };
        let own = "12:cpu,memory:/docker/x\n1:name=systemd:/a\n0::/a/b\n";
        assert_eq!(group_memory(root, own), None);
        put("a/b", "max\n", "1000\n", "0");
        assert_eq!(group_memory(root, own), None);
        put("a", "5000\n", "1107\n", "100");
        assert_eq!(group_memory(root, own), Some(4000));
        put("memory", "3000\n", "2507\n", "500");
        assert_eq!(group_memory(root, own), Some(1000));
        put("a/b", "900\n", "5000\n", "0");
        assert_eq!(group_memory(root, own), Some(0));
        assert_eq!(group_memory(root, "0::/elsewhere\n"), None);
    }
}
