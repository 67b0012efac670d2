//! Vectors to a file, row by row: `.npy`, `.safetensors` or `.jsonl`.
//!
//! Rows are appended by plain writes and not through a memory map, because a full disk under a map kills the process
//! with a signal where a write returns an error. The row count is put into a header of fixed size at the end.

use std::{
    io::{self, BufWriter, Seek, Write},
    path::{Path, PathBuf},
};

use half::f16;
use tempfile::NamedTempFile;

use super::{atomic, npy};
use crate::error::{Error, Result};

const BUFFER_BYTES: usize = 1 << 20;
/// The whole safetensors header with its size field: two tensors of 20-digit extents fit with room to spare.
const ST_HEADER_BYTES: usize = 512;

/// How the elements are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum OutputDtype {
    /// 32-bit floats.
    F32,
    /// 16-bit floats, rounded to nearest even.
    F16,
    /// 8-bit integers and one scale per row: value = integer · scale, scale = max|v| / 127.
    I8,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Npy,
    Safetensors,
    Jsonl,
}

type FileSink = BufWriter<NamedTempFile>;

enum Sink {
    File(FileSink),
    Stream(BufWriter<Box<dyn Write + Send>>),
}

impl Sink {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Sink::File(file) => file.write_all(bytes),
            Sink::Stream(stream) => stream.write_all(bytes),
        }
    }
}

/// Rows being written. Nothing has the final name before [`Output::finish`]; dropped without it, nothing is left.
pub struct Output {
    path: PathBuf,
    kind: Kind,
    dtype: OutputDtype,
    dim: usize,
    rows: u64,
    sink: Sink,
    scales: Option<FileSink>,
    bytes: Vec<u8>,
    broken: bool,
}

impl Output {
    /// Starts a file of rows of `dim` elements; its name's ending says which kind, and `-` is JSONL to stdout.
    pub fn create(path: &str, dim: usize, dtype: OutputDtype) -> Result<Output> {
        if path == "-" {
            return Output::jsonl_to(Box::new(io::stdout()), "stdout", dim, dtype);
        }
        let target = PathBuf::from(path);
        let ending = target.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
        let kind = match ending.as_deref() {
            Some("npy") => Kind::Npy,
            Some("safetensors") => Kind::Safetensors,
            Some("jsonl") => Kind::Jsonl,
            _ => {
                let what =
                    "a name ending in .npy, .safetensors or .jsonl was wanted, or - for JSONL to stdout";
                return Err(Error::usage(format!("output {path:?}: {what}")));
            }
        };
        let main = BufWriter::with_capacity(BUFFER_BYTES, atomic::beside(&target)?);
        let scales = match (kind, dtype) {
            (Kind::Npy | Kind::Safetensors, OutputDtype::I8) => {
                Some(BufWriter::with_capacity(BUFFER_BYTES, atomic::beside(&scale_path(&target))?))
            }
            _ => None,
        };
        Output::new(target, kind, dim, dtype, Sink::File(main), scales)
    }

    /// JSONL to anything that takes bytes; `name` stands for it in errors.
    pub fn jsonl_to(to: Box<dyn Write + Send>, name: &str, dim: usize, dtype: OutputDtype) -> Result<Output> {
        let sink = Sink::Stream(BufWriter::with_capacity(BUFFER_BYTES, to));
        Output::new(name.into(), Kind::Jsonl, dim, dtype, sink, None)
    }

    fn new(
        path: PathBuf,
        kind: Kind,
        dim: usize,
        dtype: OutputDtype,
        sink: Sink,
        scales: Option<FileSink>,
    ) -> Result<Output> {
        if dim == 0 {
            return Err(Error::usage(format!(
                "output {}: rows of 0 elements, at least 1 was wanted",
                path.display()
            )));
        }
        let mut output =
            Output { path, kind, dtype, dim, rows: 0, sink, scales, bytes: Vec::new(), broken: false };
        output.start().map_err(|e| output.failed(e))?;
        Ok(output)
    }

    /// Leaves room for the headers.
    fn start(&mut self) -> io::Result<()> {
        let header = self.header();
        self.sink.write_all(&header)?;
        match &mut self.scales {
            Some(scales) if self.kind == Kind::Npy => scales.write_all(&npy::header("<f4", &[0])),
            _ => Ok(()),
        }
    }

    /// The main file's header for the rows so far; its size never changes.
    fn header(&self) -> Vec<u8> {
        let dim = self.dim as u64;
        let (descr, name, width) = match self.dtype {
            OutputDtype::F32 => ("<f4", "F32", 4),
            OutputDtype::F16 => ("<f2", "F16", 2),
            OutputDtype::I8 => ("|i1", "I8", 1),
        };
        match self.kind {
            Kind::Jsonl => Vec::new(),
            Kind::Npy => npy::header(descr, &[self.rows, dim]),
            Kind::Safetensors => {
                let (rows, end) = (self.rows, self.rows * dim * width);
                let mut json = format!(
                    r#"{{"__metadata__":{{"format":"pt"}},"embeddings":{{"dtype":"{name}","shape":[{rows},{dim}],"data_offsets":[0,{end}]}}"#
                );
                if self.scales.is_some() {
                    // Aligned wherever the row length is a multiple of 4, which model widths are.
                    let last = end + rows * 4;
                    json += &format!(
                        r#","scale":{{"dtype":"F32","shape":[{rows}],"data_offsets":[{end},{last}]}}"#
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
        if !rows.len().is_multiple_of(self.dim) {
            let what =
                format!("{} elements, a multiple of the row length {} was wanted", rows.len(), self.dim);
            return Err(Error::Shape { op: "write_rows", what });
        }
        self.check_whole()?;
        for row in rows.chunks_exact(self.dim) {
            let scale = self.encode(row).inspect_err(|_| self.broken = true)?;
            let mut written = self.sink.write_all(&self.bytes);
            if let (Ok(()), Some(scales), Some(scale)) = (&written, &mut self.scales, scale) {
                written = scales.write_all(&scale.to_le_bytes());
            }
            written.map_err(|e| self.failed(e))?;
            self.rows += 1;
        }
        Ok(())
    }

    /// Puts one row's bytes into `self.bytes`, and returns its scale.
    fn encode(&mut self, row: &[f32]) -> Result<Option<f32>> {
        let half = self.dtype == OutputDtype::F16;
        let bad = |v: f32| !v.is_finite() || (half && !f16::from_f32(v).is_finite());
        if let Some((column, value)) = row.iter().enumerate().find(|(_, v)| bad(**v)) {
            let hint =
                if value.is_finite() { "too large for f16, try f32" } else { "finite numbers were wanted" };
            let what = format!("row {}, column {column} is {value}: {hint}", self.rows);
            return Err(Error::file(&self.path, what));
        }
        self.bytes.clear();
        let scale = (self.dtype == OutputDtype::I8).then(|| row_scale(row));
        match self.kind {
            Kind::Jsonl => self.encode_json(row, scale)?,
            _ => match (self.dtype, scale) {
                (OutputDtype::F16, _) => {
                    self.bytes.extend(row.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()))
                }
                (_, Some(scale)) => {
                    self.bytes.extend(row.iter().map(|v| quantized(*v, scale).to_le_bytes()[0]))
                }
                _ => self.bytes.extend(row.iter().flat_map(|v| v.to_le_bytes())),
            },
        }
        Ok(scale)
    }

    fn encode_json(&mut self, row: &[f32], scale: Option<f32>) -> Result<()> {
        let mut write = || -> io::Result<()> {
            write!(self.bytes, r#"{{"index":{},"embedding":["#, self.rows)?;
            for (i, value) in row.iter().enumerate() {
                if i > 0 {
                    self.bytes.push(b',');
                }
                match (self.dtype, scale) {
                    (OutputDtype::F16, _) => {
                        serde_json::to_writer(&mut self.bytes, &f16::from_f32(*value).to_f32())?
                    }
                    (_, Some(scale)) => write!(self.bytes, "{}", quantized(*value, scale))?,
                    _ => serde_json::to_writer(&mut self.bytes, value)?,
                }
            }
            self.bytes.push(b']');
            if let Some(scale) = scale {
                self.bytes.extend(br#","scale":"#);
                serde_json::to_writer(&mut self.bytes, &scale)?;
            }
            self.bytes.extend(b"}\n");
            Ok(())
        };
        write().map_err(|e| Error::io(&self.path, e))
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
        };
        if let Some(scales) = self.scales {
            let mut scales = unbuffered(scales).map_err(failed)?;
            scales.rewind().map_err(failed)?;
            if self.kind == Kind::Npy {
                scales.write_all(&npy::header("<f4", &[self.rows])).map_err(failed)?;
                // Before the main file, so that whoever sees that one finds its scales.
                atomic::publish(scales, &scale_path(&path))?;
            } else {
                io::copy(scales.as_file_mut(), &mut main).map_err(failed)?;
            }
        }
        let mut main = unbuffered(main).map_err(failed)?;
        main.rewind().and_then(|()| main.write_all(&header)).map_err(failed)?;
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
fn scale_path(target: &Path) -> PathBuf {
    target.with_extension("scale.npy")
}

/// The step between two integers; 0 for a row of zeros, whose integers are then all 0.
fn row_scale(row: &[f32]) -> f32 {
    row.iter().fold(0.0f32, |most, v| most.max(v.abs())) / 127.0
}

fn quantized(value: f32, scale: f32) -> i8 {
    // The division can exceed 127 by a rounding, or by much where the scale itself is denormal.
    if scale > 0.0 { (value / scale).round().clamp(-127.0, 127.0) as i8 } else { 0 }
}
