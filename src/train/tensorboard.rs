//! TensorBoard's event files: protobuf messages in frames with checksums. Few enough fields to be written by hand.

use crate::error::{Error, Result};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// An event file of one process.
pub struct Events {
    path: PathBuf,
    file: File,
}

/// Protobuf's wire types.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;
const FIXED32: u64 = 5;

impl Events {
    /// A new file in `dir`, for steps from `first` on: TensorBoard forgets what older files there say of those.
    pub fn create(dir: &Path, first: u64) -> Result<Events> {
        std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
        // TensorBoard reads a folder's files in the order of their names, so a resumed run's must come last.
        let (seconds, process) = (now() as u64, std::process::id());
        let name = |n: u32| format!("events.out.tfevents.{seconds:010}.llm2vec.{process:010}.{n:03}");
        let path = (0..1000)
            .map(|n| dir.join(name(n)))
            .find(|p| !p.exists())
            .unwrap_or_else(|| dir.join(name(1000)));
        let file = File::create_new(&path).map_err(|e| Error::io(&path, e))?;
        let mut events = Events { path, file };
        let mut version = Vec::new();
        bytes(&mut version, 3, b"brain.Event:2");
        events.event(0, &version)?;
        // SessionLog { status: START }
        let (mut session, mut start) = (Vec::new(), Vec::new());
        varint(&mut start, 1 << 3 | VARINT);
        varint(&mut start, 1);
        bytes(&mut session, 7, &start);
        events.event(first, &session)?;
        Ok(events)
    }

    /// Curves' values at `step`, by tag.
    pub fn scalars(&mut self, step: u64, values: &[(String, f64)]) -> Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in values {
            let mut one = Vec::new();
            bytes(&mut one, 1, tag.as_bytes());
            varint(&mut one, 2 << 3 | FIXED32);
            one.extend((*value as f32).to_le_bytes());
            bytes(&mut summary, 1, &one);
        }
        let mut event = Vec::new();
        bytes(&mut event, 5, &summary);
        self.event(step, &event)
    }

    /// Frames `Event { wall_time, step, … }`: length, its checksum, message, its checksum.
    fn event(&mut self, step: u64, what: &[u8]) -> Result<()> {
        let mut event = Vec::new();
        varint(&mut event, 1 << 3 | FIXED64);
        event.extend(now().to_le_bytes());
        varint(&mut event, 2 << 3 | VARINT);
        varint(&mut event, step);
        event.extend(what);
        let length = (event.len() as u64).to_le_bytes();
        let mut frame = length.to_vec();
        frame.extend(masked(&length).to_le_bytes());
        frame.extend(&event);
        frame.extend(masked(&event).to_le_bytes());
        self.file.write_all(&frame).map_err(|e| Error::io(&self.path, e))
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |t| t.as_secs_f64())
}

/// TFRecord's checksum: CRC-32C, turned and shifted so that a checksum of data that holds checksums stays good.
fn masked(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn varint(to: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        to.push(v as u8 | 0x80);
        v >>= 7;
    }
    to.push(v as u8);
}

/// A field of bytes: a string, or a message within.
fn bytes(to: &mut Vec<u8>, field: u64, data: &[u8]) {
    varint(to, field << 3 | BYTES);
    varint(to, data.len() as u64);
    to.extend(data);
}
