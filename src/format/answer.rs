//! One line of JSONL that answers a text: its vector, the vectors of its parts, or what is wrong with it.

use std::{
    io::{self, Write},
    ops::Range,
};

use half::f16;
use serde_json::Value;

use super::number::{OutputDtype, packed, quantized, row_scale};

/// `{"index": …, "id": …`, the latter where the text has one.
pub(super) fn start(line: &mut Vec<u8>, index: u64, id: Option<&Value>) -> io::Result<()> {
    write!(line, r#"{{"index":{index}"#)?;
    if let Some(id) = id {
        line.extend(br#","id":"#);
        serde_json::to_writer(line, id)?;
    }
    Ok(())
}

/// The vector of a text.
pub(super) fn vector(line: &mut Vec<u8>, row: &[f32], dtype: OutputDtype) -> io::Result<()> {
    line.extend(br#","embedding":"#);
    let scale = numbers(line, row, dtype)?;
    if let Some(scale) = scale {
        line.extend(br#","scale":"#);
        serde_json::to_writer(&mut *line, &scale)?;
    }
    line.extend(b"}\n");
    Ok(())
}

/// The vectors of a text's parts, and their bytes in it.
pub(super) fn block(
    line: &mut Vec<u8>,
    rows: std::slice::ChunksExact<f32>,
    offsets: &[Range<usize>],
    cut: bool,
    dtype: OutputDtype,
) -> io::Result<()> {
    let mut scales = Vec::new();
    line.extend(br#","vectors":["#);
    for (i, row) in rows.enumerate() {
        line.extend(if i > 0 { &b","[..] } else { b"" });
        scales.extend(numbers(line, row, dtype)?);
    }
    let pairs: Vec<[usize; 2]> = offsets.iter().map(|o| [o.start, o.end]).collect();
    line.extend(br#"],"offsets":"#);
    serde_json::to_writer(&mut *line, &pairs)?;
    if !scales.is_empty() {
        line.extend(br#","scale":"#);
        serde_json::to_writer(&mut *line, &scales)?;
    }
    line.extend(if cut { &b",\"cut\":true}\n"[..] } else { b"}\n" });
    Ok(())
}

/// What is wrong with a text.
pub(super) fn error(line: &mut Vec<u8>, what: &str) -> io::Result<()> {
    line.extend(br#","error":"#);
    serde_json::to_writer(&mut *line, what)?;
    line.extend(b"}\n");
    Ok(())
}

/// A row in brackets; its scale, where it has one.
fn numbers(line: &mut Vec<u8>, row: &[f32], dtype: OutputDtype) -> io::Result<Option<f32>> {
    let scale = row_scale(row, dtype);
    line.push(b'[');
    if dtype.is_packed() {
        for (i, byte) in packed(row, dtype).enumerate() {
            line.extend(if i > 0 { &b","[..] } else { b"" });
            match dtype {
                OutputDtype::Binary => write!(line, "{}", byte as i8)?,
                _ => write!(line, "{byte}")?,
            }
        }
        line.push(b']');
        return Ok(None);
    }
    for (i, value) in row.iter().enumerate() {
        if i > 0 {
            line.push(b',');
        }
        match (dtype, scale) {
            (OutputDtype::F16, _) => serde_json::to_writer(&mut *line, &f16::from_f32(*value).to_f32())?,
            (_, Some(scale)) => write!(line, "{}", quantized(*value, scale))?,
            _ => serde_json::to_writer(&mut *line, value)?,
        }
    }
    line.push(b']');
    Ok(scale)
}
