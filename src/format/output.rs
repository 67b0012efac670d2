//! Vectors to a file, row by row: `.npy`, `.safetensors` or `.jsonl`; `.parquet` by the feature of this name.
//!
//! Rows are appended by plain writes and not through a memory map, because a full disk under a map kills the process
//! with a signal where a write returns an error. The row count is put into a header of fixed size at the end.

//!
//! What stands beside the rows, as scales do, is written to a file of its own: `NAME.scale.npy` beside `NAME.npy`; in a
//! safetensors file it becomes a tensor behind the rows.

use std::{
    io::{self, BufWriter, Seek, Write},
    ops::Range,
    path::{Path, PathBuf},
};

use half::f16;
use serde_json::Value;
use tempfile::NamedTempFile;

use super::number::{packed, quantized, row_scale};
#[cfg(feature = "parquet")]
use super::parquet::Table;
use super::{answer, atomic, npy};
use crate::error::{Error, Result};

mod append;

pub use super::number::OutputDtype;

pub(crate) use append::{RawRows, files_of, side_names};

const BUFFER_BYTES: usize = 1 << 20;
/// The whole safetensors header with its size field: five tensors of 20-digit extents fit with room to spare.
const ST_HEADER_BYTES: usize = 1024;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Npy,
    Safetensors,
    Jsonl,
    #[cfg(feature = "parquet")]
    Parquet,
}

/// A column of numbers that goes along with the rows, or with the texts.
struct Side {
    name: &'static str,
    /// NumPy's name of the type, and safetensors'.
    types: (&'static str, &'static str),
    bytes: u64,
    /// Numbers in an entry, where it is more than one.
    pair: bool,
    entries: u64,
    file: FileSink,
}

/// Name, NumPy's type, safetensors', bytes of a number, whether an entry is a pair. In a safetensors file those of larger
/// numbers stand first, so that all are aligned.
type SideKind = (&'static str, &'static str, &'static str, u64, bool);
const STARTS: SideKind = ("starts", "<i8", "I64", 8, false);
const OFFSETS: SideKind = ("offsets", "<i8", "I64", 8, true);
const SCALE: SideKind = ("scale", "<f4", "F32", 4, false);
const CUT: SideKind = ("cut", "|i1", "I8", 1, false);
const BLOCKS: [SideKind; 4] = [STARTS, OFFSETS, SCALE, CUT];

impl Side {
    fn create(target: &Path, (name, npy, safetensors, bytes, pair): SideKind) -> Result<Side> {
        let file = BufWriter::with_capacity(BUFFER_BYTES, atomic::beside(&side_path(target, name))?);
        Ok(Side { name, types: (npy, safetensors), bytes, pair, entries: 0, file })
    }

    fn shape(&self) -> Vec<u64> {
        if self.pair { vec![self.entries, 2] } else { vec![self.entries] }
    }

    fn add(&mut self, entry: &[u8]) -> io::Result<()> {
        self.entries += 1;
        self.file.write_all(entry)
    }
}

/// The one of this name, where there is one.
fn add(sides: &mut [Side], name: &str, entry: &[u8]) -> io::Result<()> {
    sides.iter_mut().find(|side| side.name == name).map_or(Ok(()), |side| side.add(entry))
}

type FileSink = BufWriter<NamedTempFile>;

enum Sink {
    File(FileSink),
    Stream(BufWriter<Box<dyn Write + Send>>),
    #[cfg(feature = "parquet")]
    Table(Box<Table>),
}

impl Sink {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Sink::File(file) => file.write_all(bytes),
            Sink::Stream(stream) => stream.write_all(bytes),
            // Its rows go another way, and it has no header.
            #[cfg(feature = "parquet")]
            Sink::Table(_) => Ok(()),
        }
    }

    /// A row as its bytes, and its scale; a table takes the text's name for itself too.
    fn write_row(&mut self, _id: Option<&Value>, row: &[u8], _scale: Option<f32>) -> io::Result<()> {
        match self {
            #[cfg(feature = "parquet")]
            Sink::Table(table) => table.push(_id, row, _scale),
            sink => sink.write_all(row),
        }
    }
}

/// Rows being written. Nothing has the final name before [`Output::finish`]; dropped without it, nothing is left.
pub struct Output {
    path: PathBuf,
    kind: Kind,
    dtype: OutputDtype,
    dim: usize,
    /// The tensor's name.
    name: &'static str,
    rows: u64,
    /// Lines of JSONL.
    texts: u64,
    sink: Sink,
    sides: Vec<Side>,
    bytes: Vec<u8>,
    broken: bool,
}

impl Output {
    /// Starts a file of rows of `dim` elements; its name's ending says which kind, and `-` is JSONL to stdout.
    pub fn create(path: &str, dim: usize, dtype: OutputDtype) -> Result<Output> {
        Output::with_sides(path, dim, dtype, "embeddings", &[SCALE])
    }

    /// Likewise for texts that have any number of rows each ([`Output::write_block`]).
    ///
    /// Beside the rows `vectors [n, dim]` stand `starts [texts + 1]`, the first row of each text and then n, `offsets
    /// [n, 2]`, the bytes of its text that a row stands for, and `cut [texts]`, 1 where a text was cut. In a JSONL file, a
    /// line is a text, with its `vectors`, `offsets`, and `"cut": true` if it was.
    pub fn of_blocks(path: &str, dim: usize, dtype: OutputDtype) -> Result<Output> {
        Output::with_sides(path, dim, dtype, "vectors", &BLOCKS)
    }

    fn with_sides(
        path: &str,
        dim: usize,
        dtype: OutputDtype,
        name: &'static str,
        sides: &[SideKind],
    ) -> Result<Output> {
        if path == "-" {
            return Output::jsonl_to(Box::new(io::stdout()), "stdout", dim, dtype);
        }
        let target = PathBuf::from(path);
        let ending = target.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
        let kind = match ending.as_deref() {
            Some("npy") => Kind::Npy,
            Some("safetensors") => Kind::Safetensors,
            Some("jsonl") => Kind::Jsonl,
            Some("parquet") => return Output::parquet(target, dim, dtype, name),
            _ => {
                let what =
                    "a name ending in .npy, .safetensors or .jsonl was wanted, or - for JSONL to stdout";
                return Err(Error::usage(format!("output {path:?}: {what}")));
            }
        };
        let main = BufWriter::with_capacity(BUFFER_BYTES, atomic::beside(&target)?);
        let wanted =
            |side: &&SideKind| kind != Kind::Jsonl && (side.0 != "scale" || dtype == OutputDtype::I8);
        let sides = sides.iter().filter(wanted).map(|side| Side::create(&target, *side));
        let sides = sides.collect::<Result<Vec<_>>>()?;
        Output::new(target, kind, dim, dtype, name, Sink::File(main), sides)
    }

    #[cfg(feature = "parquet")]
    fn parquet(target: PathBuf, dim: usize, dtype: OutputDtype, name: &'static str) -> Result<Output> {
        if name != "embeddings" {
            let what =
                "a table has a vector a text; for those of tokens or words take .npy, .safetensors or .jsonl";
            return Err(Error::usage(format!("output {}: {what}", target.display())));
        }
        let (file, columns) = (atomic::beside(&target)?, dtype.columns(dim));
        let table = Table::new(file, columns, dtype).map_err(|e| Error::io(&target, e))?;
        Output::new(target, Kind::Parquet, dim, dtype, name, Sink::Table(Box::new(table)), Vec::new())
    }

    #[cfg(not(feature = "parquet"))]
    fn parquet(target: PathBuf, _: usize, _: OutputDtype, _: &'static str) -> Result<Output> {
        let what = "this build writes no Parquet; build with --features parquet, or take .npy, .safetensors or .jsonl";
        Err(Error::usage(format!("output {}: {what}", target.display())))
    }

    /// JSONL to anything that takes bytes; `name` stands for it in errors.
    pub fn jsonl_to(to: Box<dyn Write + Send>, name: &str, dim: usize, dtype: OutputDtype) -> Result<Output> {
        let sink = Sink::Stream(BufWriter::with_capacity(BUFFER_BYTES, to));
        Output::new(name.into(), Kind::Jsonl, dim, dtype, "embeddings", sink, Vec::new())
    }

    fn new(
        path: PathBuf,
        kind: Kind,
        dim: usize,
        dtype: OutputDtype,
        name: &'static str,
        sink: Sink,
        sides: Vec<Side>,
    ) -> Result<Output> {
        if dim == 0 {
            return Err(Error::usage(format!(
                "output {}: rows of 0 elements, at least 1 was wanted",
                path.display()
            )));
        }
        if dtype.is_packed() && !dim.is_multiple_of(8) {
            let what = format!("rows of {dim} elements, a multiple of 8 was wanted for a bit each");
            return Err(Error::usage(format!("output {}: {what}", path.display())));
        }
        let (bytes, broken) = (Vec::new(), false);
        let mut output =
            Output { path, kind, dtype, dim, name, rows: 0, texts: 0, sink, sides, bytes, broken };
        output.start().map_err(|e| output.failed(e))?;
        Ok(output)
    }

    /// Leaves room for the headers, and says where the first text starts.
    fn start(&mut self) -> io::Result<()> {
        let header = self.header();
        self.sink.write_all(&header)?;
        if self.kind == Kind::Npy {
            let room = |side: &mut Side| side.file.write_all(&npy::header(side.types.0, &side.shape()));
            self.sides.iter_mut().try_for_each(room)?;
        }
        add(&mut self.sides, "starts", &0i64.to_le_bytes())
    }

    /// The main file's header for the rows so far; its size never changes.
    fn header(&self) -> Vec<u8> {
        let dim = self.dtype.columns(self.dim) as u64;
        let (descr, dtype, width) = match self.dtype {
            OutputDtype::F32 => ("<f4", "F32", 4),
            OutputDtype::F16 => ("<f2", "F16", 2),
            OutputDtype::I8 | OutputDtype::Binary => ("|i1", "I8", 1),
            OutputDtype::Ubinary => ("|u1", "U8", 1),
        };
        match self.kind {
            Kind::Jsonl => Vec::new(),
            #[cfg(feature = "parquet")]
            Kind::Parquet => Vec::new(),
            Kind::Npy => npy::header(descr, &[self.rows, dim]),
            Kind::Safetensors => {
                let (rows, mut end) = (self.rows, self.rows * dim * width);
                let mut json = format!(
                    r#"{{"__metadata__":{{"format":"pt"}},"{}":{{"dtype":"{dtype}","shape":[{rows},{dim}],"data_offsets":[0,{end}]}}"#,
                    self.name
                );
                // Aligned wherever the row length is a multiple of 8, which model widths are.
                for side in &self.sides {
                    let (shape, first) = (side.shape(), end);
                    end += side.bytes * shape.iter().product::<u64>();
                    json += &format!(
                        r#","{}":{{"dtype":"{}","shape":{shape:?},"data_offsets":[{first},{end}]}}"#,
                        side.name, side.types.1
                    );
                }
                json.push('}');
                let room = ST_HEADER_BYTES - size_of::<u64>();
                let mut header = (room as u64).to_le_bytes().to_vec();
                header.extend(format!("{json:<room$}").as_bytes());
                header
            }
        }
    }

    /// Appends whole rows. NaN and infinities, also those that rounding to f16 would make, are errors.
    pub fn write_rows(&mut self, rows: &[f32]) -> Result<()> {
        self.check_rows(rows)?;
        rows.chunks_exact(self.dim).try_for_each(|row| self.write_vector(None, row))
    }

    /// Appends a text's one row. A line of JSONL has the text's `id` too.
    pub fn write_vector(&mut self, id: Option<&Value>, row: &[f32]) -> Result<()> {
        self.check_rows(row)?;
        if self.kind != Kind::Jsonl {
            return self.write_row(id, row);
        }
        let dtype = self.dtype;
        self.rows += 1;
        self.write_line(id, |line| answer::vector(line, row, dtype))
    }

    /// Appends the rows of one text, each with the bytes of it that the row stands for. A file but JSONL has no `id`.
    pub fn write_block(
        &mut self,
        id: Option<&Value>,
        rows: &[f32],
        offsets: &[Range<usize>],
        cut: bool,
    ) -> Result<()> {
        self.check_rows(rows)?;
        let (dim, dtype) = (self.dim, self.dtype);
        if self.kind == Kind::Jsonl {
            self.rows += offsets.len() as u64;
            return self
                .write_line(id, |line| answer::block(line, rows.chunks_exact(dim), offsets, cut, dtype));
        }
        rows.chunks_exact(dim).try_for_each(|row| self.write_row(None, row))?;
        let pair = |o: &Range<usize>| [(o.start as i64).to_le_bytes(), (o.end as i64).to_le_bytes()].concat();
        let sides = &mut self.sides;
        let written = offsets.iter().try_for_each(|o| add(sides, "offsets", &pair(o)));
        let written = written.and_then(|()| add(sides, "starts", &(self.rows as i64).to_le_bytes()));
        let written = written.and_then(|()| add(sides, "cut", &[u8::from(cut)]));
        written.map_err(|e| self.failed(e))
    }

    /// Appends, to JSONL, what is wrong with a text that has no row.
    pub fn write_error(&mut self, id: Option<&Value>, what: &str) -> Result<()> {
        self.check_whole()?;
        self.write_line(id, |line| answer::error(line, what))
    }

    /// Hands everything so far to whoever reads.
    pub fn flush(&mut self) -> Result<()> {
        let flushed = match &mut self.sink {
            Sink::File(file) => file.flush(),
            Sink::Stream(stream) => stream.flush(),
            #[cfg(feature = "parquet")]
            Sink::Table(_) => Ok(()),
        };
        flushed.map_err(|e| self.failed(e))
    }

    fn write_line(
        &mut self,
        id: Option<&Value>,
        rest: impl FnOnce(&mut Vec<u8>) -> io::Result<()>,
    ) -> Result<()> {
        self.bytes.clear();
        let made = answer::start(&mut self.bytes, self.texts, id).and_then(|()| rest(&mut self.bytes));
        made.and_then(|()| self.sink.write_all(&self.bytes)).map_err(|e| self.failed(e))?;
        self.texts += 1;
        Ok(())
    }

    /// Whole rows of numbers that the type has.
    fn check_rows(&mut self, rows: &[f32]) -> Result<()> {
        if !rows.len().is_multiple_of(self.dim) {
            let what =
                format!("{} elements, a multiple of the row length {} was wanted", rows.len(), self.dim);
            return Err(Error::Shape { op: "write_rows", what });
        }
        self.check_whole()?;
        let half = self.dtype == OutputDtype::F16;
        let bad = |v: f32| !v.is_finite() || (half && !f16::from_f32(v).is_finite());
        if let Some((place, value)) = rows.iter().enumerate().find(|(_, v)| bad(**v)) {
            let (row, column) = (self.rows + (place / self.dim) as u64, place % self.dim);
            let hint =
                if value.is_finite() { "too large for f16, try f32" } else { "finite numbers were wanted" };
            self.broken = true;
            return Err(Error::file(&self.path, format!("row {row}, column {column} is {value}: {hint}")));
        }
        Ok(())
    }

    fn write_row(&mut self, id: Option<&Value>, row: &[f32]) -> Result<()> {
        self.bytes.clear();
        let scale = row_scale(row, self.dtype);
        match (self.dtype, scale) {
            (OutputDtype::F16, _) => {
                self.bytes.extend(row.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()))
            }
            (OutputDtype::Binary | OutputDtype::Ubinary, _) => self.bytes.extend(packed(row, self.dtype)),
            (_, Some(scale)) => self.bytes.extend(row.iter().map(|v| quantized(*v, scale).to_le_bytes()[0])),
            _ => self.bytes.extend(row.iter().flat_map(|v| v.to_le_bytes())),
        }
        let mut written = self.sink.write_row(id, &self.bytes, scale);
        if let (Ok(()), Some(scale)) = (&written, scale) {
            written = add(&mut self.sides, "scale", &scale.to_le_bytes());
        }
        written.map_err(|e| self.failed(e))?;
        self.rows += 1;
        Ok(())
    }

    /// Completes the headers, syncs, and gives the file its name; returns the number of rows.
    pub fn finish(self) -> Result<u64> {
        self.check_whole()?;
        let path = self.path.clone();
        let failed = |e| write_error(&path, self.rows, e);
        let header = self.header();
        let mut main = match self.sink {
            Sink::Stream(mut stream) => return stream.flush().map(|()| self.rows).map_err(failed),
            Sink::File(main) => main,
            #[cfg(feature = "parquet")]
            Sink::Table(table) => {
                let file = table.finish().map_err(failed)?;
                return atomic::publish(file, &path).map(|()| self.rows);
            }
        };
        let mut beside = Vec::new();
        for side in self.sides {
            let head = npy::header(side.types.0, &side.shape());
            let mut file = unbuffered(side.file).map_err(failed)?;
            file.rewind().map_err(failed)?;
            if self.kind == Kind::Npy {
                file.write_all(&head).map_err(failed)?;
                file.as_file().sync_all().map_err(failed)?;
                beside.push((file, side_path(&path, side.name)));
            } else {
                io::copy(file.as_file_mut(), &mut main).map_err(failed)?;
            }
        }
        let mut main = unbuffered(main).map_err(failed)?;
        main.rewind().and_then(|()| main.write_all(&header)).map_err(failed)?;
        main.as_file().sync_all().map_err(failed)?;
        if !beside.is_empty() {
            // An older main file goes first, for it belongs to other sides: whoever sees one finds its own.
            atomic::remove(&path)?;
        }
        beside.into_iter().try_for_each(|(file, target)| atomic::publish(file, &target))?;
        atomic::publish(main, &path)?;
        Ok(self.rows)
    }

    /// Refuses to go on after a failed write, which may have left half a row.
    fn check_whole(&self) -> Result<()> {
        if self.broken {
            return Err(Error::file(
                &self.path,
                "an earlier row could not be written, so the file is not completed",
            ));
        }
        Ok(())
    }

    fn failed(&mut self, error: io::Error) -> Error {
        self.broken = true;
        write_error(&self.path, self.rows, error)
    }
}

fn write_error(path: &Path, rows: u64, error: io::Error) -> Error {
    if error.kind() == io::ErrorKind::StorageFull {
        let what =
            format!("the disk is full after about {rows} rows; free some space, or try f16 or i8 output");
        return Error::file(path, what);
    }
    Error::io(path, error)
}

/// Flushes; the file is dropped, and so removed, where that fails.
fn unbuffered(file: FileSink) -> io::Result<NamedTempFile> {
    file.into_inner().map_err(|e| e.into_error())
}

/// `NAME.scale.npy` for `NAME.npy`.
pub(super) fn side_path(target: &Path, name: &str) -> PathBuf {
    target.with_extension(format!("{name}.npy"))
}
