//! What `.gz` and `.zst` files hold: recognised by their first bytes when the first of them is read.

use std::{
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::{
    BlockDecodingStrategy, FrameDecoder,
    errors::{FrameDecoderError, ReadFrameHeaderError},
};

use crate::error::Error;

/// What ruzstd allows.
const MAX_WINDOW_BYTES: u64 = 100 << 20;
/// How much is read at a time.
pub(super) const BUFFER_BYTES: usize = 1 << 16;

/// How bytes are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packing {
    Gzip,
    Zstd,
}

impl Packing {
    /// By the ending of a name.
    fn named(path: &Path) -> Option<Packing> {
        match ending(path).as_deref() {
            Some("gz") => Some(Packing::Gzip),
            Some("zst") => Some(Packing::Zstd),
            _ => None,
        }
    }

    fn magic(self) -> &'static [u8] {
        match self {
            Packing::Gzip => b"\x1f\x8b",
            Packing::Zstd => b"\x28\xb5\x2f\xfd",
        }
    }
}

/// The name without `.gz` or `.zst`.
pub fn unpacked(path: &Path) -> PathBuf {
    if Packing::named(path).is_some() { path.with_extension("") } else { path.to_path_buf() }
}

/// The ending of a name, in lower case.
pub(super) fn ending(path: &Path) -> Option<String> {
    Some(path.extension()?.to_str()?.to_ascii_lowercase())
}

/// Bytes, unpacked where they are packed. Nothing is read before it is asked for: it may be a pipe that waits.
pub(super) struct Unpacked {
    source: Box<dyn BufRead + Send>,
    named: Option<Packing>,
    packing: Option<Packing>,
    begun: bool,
}

impl Unpacked {
    /// Of this source; where it has no such first bytes it is still what the name says, which is then an error.
    pub(super) fn new(path: &Path, source: impl Read + Send + 'static) -> Unpacked {
        let source = Box::new(BufReader::with_capacity(BUFFER_BYTES, source));
        Unpacked { source, named: Packing::named(path), packing: None, begun: false }
    }

    /// Whether it is packed, as far as that is known: after the first read, it is.
    pub(super) fn is_packed(&self) -> bool {
        self.packing.is_some()
    }

    fn begin(&mut self) -> io::Result<()> {
        if self.begun {
            return Ok(());
        }
        let head = self.source.fill_buf()?;
        let found = [Packing::Gzip, Packing::Zstd].into_iter().find(|p| head.starts_with(p.magic()));
        self.packing = found.or(self.named);
        self.begun = true;
        let source = std::mem::replace(&mut self.source, Box::new(io::empty()));
        self.source = match self.packing {
            Some(Packing::Gzip) => {
                Box::new(BufReader::with_capacity(BUFFER_BYTES, MultiGzDecoder::new(source)))
            }
            Some(Packing::Zstd) => Box::new(BufReader::with_capacity(BUFFER_BYTES, Zstd::new(source))),
            None => source,
        };
        Ok(())
    }

    /// What went wrong at `place` of a file.
    pub(super) fn failed(&self, path: &Path, place: impl std::fmt::Display, e: io::Error) -> Error {
        let packing = match self.packing {
            Some(_) if e.kind() == io::ErrorKind::Unsupported => {
                return Error::file(path, format!("{place}: {e}"));
            }
            Some(Packing::Gzip) => "gzip",
            Some(Packing::Zstd) => "zstd",
            None => return Error::io(path, e),
        };
        Error::file(path, format!("{place}: {e}; the {packing} file is damaged or cut short"))
    }
}

impl Read for Unpacked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.begin()?;
        self.source.read(buffer)
    }
}

impl BufRead for Unpacked {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.begin()?;
        self.source.fill_buf()
    }

    fn consume(&mut self, bytes: usize) {
        self.source.consume(bytes);
    }
}

/// All frames of a zstd file one after the other, which ruzstd's own reader leaves to its caller.
struct Zstd<R> {
    source: R,
    decoder: FrameDecoder,
    inside: bool,
    frames: u64,
}

impl<R: BufRead> Zstd<R> {
    fn new(source: R) -> Zstd<R> {
        let mut decoder = FrameDecoder::new();
        // ruzstd bounds the window, and so the memory, in every frame but a decoder's first: this one, which is empty.
        let primed = decoder.init(&b"\x28\xb5\x2f\xfd\x20\x00\x01\x00\x00"[..]);
        debug_assert!(primed.is_ok());
        Zstd { source, decoder, inside: false, frames: 0 }
    }

    /// Starts the next frame; false at the end of the file.
    fn next_frame(&mut self) -> io::Result<bool> {
        while !self.inside {
            if self.source.fill_buf()?.is_empty() {
                return if self.frames > 0 { Ok(false) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
            match self.decoder.reset(&mut self.source) {
                Ok(()) => self.inside = true,
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let skipped = io::copy(&mut (&mut self.source).take(length.into()), &mut io::sink())?;
                    if skipped < u64::from(length) {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(FrameDecoderError::WindowSizeTooBig { requested }) => {
                    let what = format!(
                        "needs a zstd window of {requested} bytes, at most {MAX_WINDOW_BYTES} are allowed"
                    );
                    let what = format!("{what}; decompress it first with zstd -d --long=31");
                    return Err(io::Error::new(io::ErrorKind::Unsupported, what));
                }
                Err(e) => return Err(io::Error::other(e)),
            }
            self.frames += 1;
        }
        Ok(true)
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while !buffer.is_empty() && self.next_frame()? {
            while self.decoder.can_collect() < buffer.len() && !self.decoder.is_finished() {
                let more = buffer.len() - self.decoder.can_collect();
                let strategy = BlockDecodingStrategy::UptoBytes(more);
                self.decoder.decode_blocks(&mut self.source, strategy).map_err(io::Error::other)?;
            }
            let got = self.decoder.read(buffer)?;
            if got > 0 {
                return Ok(got);
            }
            // The frame is over and drained: only now is its checksum known.
            let (said, made) =
                (self.decoder.get_checksum_from_data(), self.decoder.get_calculated_checksum());
            if said.is_some() && made.is_some() && said != made {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the checksum does not match the content",
                ));
            }
            self.inside = false;
        }
        Ok(0)
    }
}
