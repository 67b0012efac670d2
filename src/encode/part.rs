//! A part of a sharded encoding, and the record beside it of what it is a part of.

use crate::error::{Error, Result};
use crate::format::atomic;
use crate::format::output::{OutputDtype, files_of};
use crate::pretrained::fingerprint::{self, whole};
use crate::pretrained::open::Setup;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// Part `number`, from 1, of so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its number.
    pub number: u64,
    /// How many there are.
    pub of: u64,
}

/// What a part is of, which all parts of one run have in common, and which part it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PartRecord {
    /// Its number, from 1.
    pub part: u64,
    /// How many there are.
    pub parts: u64,
    /// The first text of the input that it has, from 0, and the first behind it.
    pub texts: [u64; 2],
    /// Texts of the input.
    pub total: u64,
    /// Numbers in a vector.
    pub width: usize,
    /// How they are stored.
    pub dtype: OutputDtype,
    /// Whether texts have a vector each, or any number.
    pub level: String,
    /// What else decides the numbers: input, model, adapters, settings.
    pub run: Map<String, Value>,
    /// Sizes and hashes of its files, the main one first; none before they are written.
    pub files: Vec<String>,
}

impl PartRecord {
    /// Of a part of the file `input`, in rows of this width, type and level; `asked` is what the command line asks for beside
    /// the model's settings.
    pub fn new(
        part: Part,
        texts: std::ops::Range<u64>,
        total: u64,
        input: &Path,
        setup: &Setup,
        form: (usize, OutputDtype, &str),
        asked: Map<String, Value>,
    ) -> Result<PartRecord> {
        let mut run = fingerprint::model(&setup.stack)?;
        run.insert("input".into(), whole(input)?.into());
        run.insert("settings".into(), json!(setup.settings()));
        run.insert("layers".into(), setup.config.layers.into());
        run.insert("version".into(), env!("CARGO_PKG_VERSION").into());
        run.extend(asked);
        Ok(PartRecord {
            part: part.number,
            parts: part.of,
            texts: [texts.start, texts.end],
            total,
            width: form.0,
            dtype: form.1,
            level: form.2.into(),
            run,
            files: Vec::new(),
        })
    }

    /// `vectors.npy.part.json` for `vectors.npy`.
    pub fn path(part: &Path) -> PathBuf {
        let name = part.file_name().unwrap_or_default().to_string_lossy();
        part.with_file_name(format!("{name}.part.json"))
    }

    /// The record beside a part.
    pub fn read(part: &Path) -> Result<PartRecord> {
        let path = PartRecord::path(part);
        let text = match std::fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                let what = format!("has no record {name} beside it, as the parts of a sharded encoding have");
                return Err(Error::file(part, what));
            }
            read => read.map_err(|e| Error::io(&path, e))?,
        };
        serde_json::from_slice(&text).map_err(|e| Error::file(&path, format!("is no record of a part: {e}")))
    }

    /// Writes the record of files that are there.
    pub fn write(mut self, part: &Path) -> Result<()> {
        self.files = self.hashes(part)?;
        atomic::write_json(&PartRecord::path(part), &self)
    }

    /// Whether that part is there, whole, and of this very run.
    pub fn is_done(&self, part: &Path) -> bool {
        let of_this = |there: &PartRecord| *self == PartRecord { files: Vec::new(), ..there.clone() };
        PartRecord::read(part)
            .is_ok_and(|there| of_this(&there) && self.hashes(part).is_ok_and(|hashes| hashes == there.files))
    }

    /// Refuses a part whose files are not what was recorded.
    pub fn check_files(&self, part: &Path) -> Result<()> {
        match self.hashes(part)? == self.files {
            true => Ok(()),
            false => {
                Err(Error::file(part, "is not what its record says: cut short or changed; encode it again"))
            }
        }
    }

    fn hashes(&self, part: &Path) -> Result<Vec<String>> {
        files_of(part, self.dtype, self.level != "text").iter().map(|file| whole(file)).collect()
    }
}
