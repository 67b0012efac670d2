//! A file as a slice: weights are read where they lie, and only the pages that are touched.
#![allow(unsafe_code)]

use std::{fs, ops::Deref, path::Path};

use crate::error::{Error, Result};

/// A read-only memory map of a whole file; an empty file is an empty slice.
pub struct Mapped(Option<memmap2::Mmap>);

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
        // rewrites the file meanwhile; every writer of this crate replaces files by renaming, never in place.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
        Ok(Mapped(Some(map)))
    }

    /// The file's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.as_bytes()
    }
}
