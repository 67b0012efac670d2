//! A file as a slice: weights are read where they lie, and only the pages that are touched.
#![allow(unsafe_code)]

use std::{
    fs,
    ops::Deref,
    path::Path,
    sync::atomic::{AtomicPtr, AtomicUsize, Ordering::SeqCst},
};

use crate::error::{Error, Result, one_line};

/// A read-only memory map of a whole file; an empty file is an empty slice.
pub struct Mapped(Option<Map>);

struct Map {
    // Dropped before the map that it describes.
    _entry: Option<Entry>,
    bytes: memmap2::Mmap,
}

impl Mapped {
    /// Maps the regular file at `path`.
    pub fn open(path: &Path) -> Result<Mapped> {
        // Asked before opening: opening a pipe would wait for its writer for ever.
        let kind = fs::metadata(path).map_err(|e| Error::io(path, e))?;
        if !kind.is_file() {
            return Err(Error::file(
                path,
                "is not a regular file, and only those can be mapped; give a file",
            ));
        }
        let file = fs::File::open(path).map_err(|e| Error::io(path, e))?;
        let bytes = file.metadata().map_err(|e| Error::io(path, e))?.len();
        if bytes == 0 {
            return Ok(Mapped(None)); // the system refuses a map of no bytes
        }
        // SAFETY: the map is read-only and private to this value. What it relies on is that nobody shortens or
        // rewrites the file meanwhile (the program ends where one does); every writer of this crate replaces files by renaming, never in place.
        let bytes = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
        let _entry = Entry::new(path, &bytes);
        Ok(Mapped(Some(Map { _entry, bytes })))
    }

    /// The file's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_ref().map_or(&[], |map| &map.bytes)
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.as_bytes()
    }
}

/// The maps there are, for the handler of a fault: it may neither lock nor allocate.
static TABLE: [Row; 256] = [const { Row::free() }; 256];

struct Row {
    /// The first address; 0 is a free row, 1 one that is being filled.
    start: AtomicUsize,
    end: AtomicUsize,
    name: AtomicPtr<u8>,
    name_bytes: AtomicUsize,
}

impl Row {
    const fn free() -> Row {
        Row {
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            name: AtomicPtr::new(std::ptr::null_mut()),
            name_bytes: AtomicUsize::new(0),
        }
    }
}

/// Lets the pages go that lie wholly in these bytes, if they are a map's: who reads there again finds them in the file again.
/// Without it they count as this process's memory until the map is dropped.
pub(crate) fn release(bytes: &[u8]) {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: `sysconf` only answers.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) }.max(4096) as usize;
        let from = (bytes.as_ptr() as usize).next_multiple_of(page);
        let to = (bytes.as_ptr() as usize + bytes.len()) / page * page;
        let is_mapped = |row: &Row| {
            let (start, end) = (row.start.load(SeqCst), row.end.load(SeqCst));
            start > 1 && start <= from && to <= end
        };
        if from < to && TABLE.iter().any(is_mapped) {
            // SAFETY: whole pages inside of a read-only map of a file, which `bytes` keeps alive: dropped, they are read from
            // the file where somebody looks again. Memory that is no map of ours would lose its content, and is not touched.
            unsafe { libc::madvise(from as *mut libc::c_void, to - from, libc::MADV_DONTNEED) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = bytes;
}

/// A row that is taken, and the name that it points to.
struct Entry {
    row: &'static Row,
    name: Box<str>,
}

impl Entry {
    /// `None` where there are more maps than rows: a fault of theirs has no name.
    fn new(path: &Path, bytes: &[u8]) -> Option<Entry> {
        let row = TABLE.iter().find(|row| row.start.compare_exchange(0, 1, SeqCst, SeqCst).is_ok())?;
        let name = one_line(&path.display().to_string()).into_boxed_str();
        let start = bytes.as_ptr() as usize;
        row.name.store(name.as_ptr().cast_mut(), SeqCst);
        row.name_bytes.store(name.len(), SeqCst);
        row.end.store(start + bytes.len(), SeqCst);
        row.start.store(start, SeqCst);
        Some(Entry { row, name })
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        debug_assert_eq!(self.row.name_bytes.load(SeqCst), self.name.len());
        self.row.start.store(0, SeqCst);
    }
}

/// The file that is mapped at an address, for a thread that was reading there.
pub(super) fn name_at(address: usize) -> Option<&'static [u8]> {
    let row = TABLE.iter().find(|row| {
        let (start, end) = (row.start.load(SeqCst), row.end.load(SeqCst));
        start > 1 && (start..end).contains(&address)
    })?;
    // SAFETY: the thread that asks is stopped inside a read of the map, which therefore lives, and with it its name.
    Some(unsafe { std::slice::from_raw_parts(row.name.load(SeqCst), row.name_bytes.load(SeqCst)) })
}
