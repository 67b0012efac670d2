//! Rows of other files of the same form, one behind the other: what the parts of an encoding become.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::{BLOCKS, Output, OutputDtype, SCALE, STARTS, side_path};
use crate::error::{Error, Result};

/// Rows as they lie in a file, and what stands beside them, by name.
pub struct RawRows<'a> {
    /// Rows, one after the other.
    pub rows: &'a [u8],
    /// Numbers of a row.
    pub columns: usize,
    /// `starts`, `offsets`, `scale`, `cut`: those that a file of this form has.
    pub sides: Vec<(&'static str, &'a [u8])>,
}

impl Output {
    /// Appends the rows of another file of this form, as they lie in it.
    pub(crate) fn append(&mut self, part: &RawRows, from: &Path) -> Result<()> {
        self.check_whole()?;
        let columns = self.dtype.columns(self.dim);
        let width = columns * self.dtype.bytes();
        let wrong = |what: String| Err(Error::file(from, what));
        if part.columns != columns || !part.rows.len().is_multiple_of(width) {
            return wrong(format!("rows of {} numbers, {columns} were wanted", part.columns));
        }
        let before = self.rows;
        self.rows += (part.rows.len() / width) as u64;
        let mut written = self.sink.write_all(part.rows);
        for side in &mut self.sides {
            let Some((_, bytes)) = part.sides.iter().find(|(name, _)| *name == side.name) else {
                return wrong(format!("has no {}", side.name));
            };
            // Its first entry is where the part begins, which stands there already.
            let skipped = if side.name == STARTS.0 { 8 } else { 0 };
            let entry = side.bytes as usize * if side.pair { 2 } else { 1 };
            for bytes in bytes.get(skipped..).unwrap_or_default().chunks_exact(entry) {
                written = written.and_then(|()| match (side.name == STARTS.0, bytes.try_into()) {
                    (true, Ok(start)) => side.add(&(i64::from_le_bytes(start) + before as i64).to_le_bytes()),
                    _ => side.add(bytes),
                });
            }
        }
        written.map_err(|e| self.failed(e))
    }

    /// Appends a line of another JSONL file of ours, under the next number.
    pub(crate) fn append_line(&mut self, line: &str, from: &Path) -> Result<()> {
        self.check_whole()?;
        let rest = line
            .strip_prefix(r#"{"index":"#)
            .map(|rest| rest.trim_start_matches(|c: char| c.is_ascii_digit()));
        let Some(rest) = rest else {
            return Err(Error::file(from, "a line does not begin with its index"));
        };
        self.rows += 1;
        self.write_line(None, |to| writeln!(to, "{rest}"))
    }
}

/// The files of an output of this form: the main one, and those beside an .npy file.
pub(crate) fn files_of(path: &Path, dtype: OutputDtype, blocks: bool) -> Vec<PathBuf> {
    let is_npy = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("npy"));
    let sides = if is_npy { side_names(dtype, blocks) } else { Vec::new() };
    std::iter::once(path.to_path_buf()).chain(sides.iter().map(|name| side_path(path, name))).collect()
}

/// What stands beside the rows of an output of this form.
pub(crate) fn side_names(dtype: OutputDtype, blocks: bool) -> Vec<&'static str> {
    let kinds = if blocks { &BLOCKS[..] } else { &[SCALE][..] };
    kinds.iter().map(|kind| kind.0).filter(|name| *name != SCALE.0 || dtype == OutputDtype::I8).collect()
}
