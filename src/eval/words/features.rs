//! Rows of features for the words of a file: computed layer by layer in one pass, streamed to disk and mapped from there,
//! and found there again by the next run.
//!
//! A layer of a file is two files of the cache, named by the hash of all that decides the numbers: `HASH.npy`, the rows,
//! and after it `HASH.json`, which says what they are of, with their checksum. One that is missing, cut short or changed
//! is computed anew. Labels are no part of the name, so another layer of tags of the same words costs no pass.

use super::reader::{Sentence, Tagged};
use crate::encode::Encoder;
use crate::encode::texts::Item;
use crate::encode::tokens::Passage;
use crate::encode::words::{Features, WordRows};
use crate::error::{Error, Result, message};
use crate::format::atomic;
use crate::format::hf::read_json;
use crate::format::input::joined;
use crate::format::output::{Output, OutputDtype};
use crate::format::vectors::VectorFile;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Bytes of rows that are held before they are written.
const WINDOW_BYTES: usize = 256 << 20;

enum Rows {
    File(VectorFile),
    Held(Vec<f32>),
}

/// The rows of one layer for the words of one file.
pub struct Table {
    rows: Rows,
    /// The numbers in each.
    pub width: usize,
    /// Which words of the file, counted through, have no row; rising.
    pub left_out: Vec<usize>,
    /// Sentences that a length limit cut.
    pub cut: usize,
}

impl Table {
    /// Rows from elsewhere, one for every word.
    pub fn held(rows: Vec<f32>, width: usize) -> Table {
        Table { rows: Rows::Held(rows), width, left_out: Vec::new(), cut: 0 }
    }

    /// `[N, C]`
    pub fn floats(&self) -> &[f32] {
        match &self.rows {
            Rows::File(file) => file.floats().unwrap_or_default(),
            Rows::Held(rows) => rows,
        }
    }
}

/// What stands in the second file.
#[derive(Serialize, Deserialize)]
struct Note {
    of: Value,
    width: usize,
    rows: usize,
    crc32c: u32,
    left_out: Vec<usize>,
    cut: usize,
}

/// Where rows lie: a folder that stays, or one of this process.
enum Folder {
    Kept(PathBuf),
    Temporary(TempDir),
}

/// Loads a model.
pub type Load = Box<dyn FnOnce() -> Result<Encoder>>;

/// Makes rows, or finds them made.
pub struct Extractor {
    folder: Folder,
    /// All that decides the numbers but the words and the layer.
    of: Value,
    rows: WordRows,
    load: Option<Load>,
    encoder: Option<Encoder>,
    progress: Box<dyn FnMut(usize, usize)>,
    /// What a user should know of the cache.
    pub notes: Vec<String>,
}

impl Extractor {
    /// Rows as `rows` says, of the model that `load` loads when it is needed, which `of` describes. `cache` is made where it
    /// is missing; none is a folder that is gone at the end. `progress` is told sentences and tokens.
    pub fn new(
        cache: Option<&Path>,
        of: Value,
        rows: WordRows,
        load: Load,
        progress: impl FnMut(usize, usize) + 'static,
    ) -> Result<Extractor> {
        let folder = match cache {
            Some(path) => {
                std::fs::create_dir_all(path).map_err(|e| Error::io(path, e))?;
                Folder::Kept(path.to_path_buf())
            }
            None => Folder::Temporary(atomic::folder_in(&std::env::temp_dir(), "llm2vec-words.")?),
        };
        let (load, progress) = (Some(load), Box::new(progress));
        Ok(Extractor { folder, of, rows, load, encoder: None, progress, notes: Vec::new() })
    }

    /// Whether the model had to be loaded.
    pub fn loaded(&self) -> bool {
        self.encoder.is_some()
    }

    /// The layers that rows are made of, rising.
    pub fn layers(&self) -> &[usize] {
        &self.rows.layers
    }

    /// A table for each layer, in order.
    pub fn tables(&mut self, file: &Tagged) -> Result<Vec<Table>> {
        let words = words_hash(file);
        let entries: Vec<Entry> = self.rows.layers.iter().map(|&layer| self.entry(layer, &words)).collect();
        let mut missing = Vec::new();
        for (entry, &layer) in entries.iter().zip(&self.rows.layers) {
            match entry.open(file) {
                Ok(Some(_)) => {}
                Ok(None) => missing.push(layer),
                Err(what) => {
                    let again = "; its features are computed anew";
                    self.notes.push(format!("{}: {what}{again}", entry.path("json").display()));
                    missing.push(layer);
                }
            }
        }
        if !missing.is_empty() {
            let new: Vec<Entry> = missing.iter().map(|&layer| self.entry(layer, &words)).collect();
            self.compute(file, missing, &new)?;
        }
        let table = |entry: &Entry| match entry.open(file) {
            Ok(Some(table)) => Ok(table),
            Ok(None) => Err(Error::file(entry.path("npy"), "has just been written and is gone")),
            Err(what) => Err(Error::file(entry.path("npy"), what)),
        };
        entries.iter().map(table).collect()
    }

    fn entry(&self, layer: usize, words: &str) -> Entry {
        let of = json!({
            "model": self.of, "layer": layer, "words": words, "version": env!("CARGO_PKG_VERSION"),
            "pooling": format!("{:?}", self.rows.pooling), "position": self.rows.position.name(),
        });
        let (folder, checked) = match &self.folder {
            Folder::Kept(path) => (path.clone(), true),
            Folder::Temporary(folder) => (folder.path().to_path_buf(), false),
        };
        Entry { folder, name: hash(of.to_string().as_bytes()), of, checked }
    }

    /// One pass for these layers, written window by window.
    fn compute(&mut self, file: &Tagged, layers: Vec<usize>, entries: &[Entry]) -> Result<()> {
        if let Some(load) = self.load.take() {
            self.encoder = Some(load()?);
        }
        let Some(encoder) = &mut self.encoder else {
            return Err(Error::unsupported("the model could not be loaded before"));
        };
        let width = encoder.setup.config.width;
        let create =
            |entry: &Entry| Output::create(&entry.path("npy").to_string_lossy(), width, OutputDtype::F32);
        let mut outputs = entries.iter().map(create).collect::<Result<Vec<_>>>()?;
        let most = WINDOW_BYTES / (4 * width * layers.len());
        let rows = WordRows { layers, ..self.rows.clone() };
        let (mut left_out, mut cut, mut first) = (Vec::new(), 0, 0);
        let mut sentences = file.sentences.as_slice();
        while !sentences.is_empty() {
            let mut words = 0;
            let fits = |s: &&Sentence| {
                words += s.words.len();
                words <= most
            };
            let count = sentences.iter().take_while(fits).count().max(1);
            let (window, rest) = sentences.split_at(count);
            sentences = rest;
            let features = window_features(encoder, file, window, &rows, &mut self.progress)?;
            for (sentence, features) in window.iter().zip(features) {
                let mut kept = features.words.iter().copied().peekable();
                for word in 0..sentence.words.len() {
                    if kept.next_if_eq(&word).is_none() {
                        left_out.push(first + word);
                    }
                }
                first += sentence.words.len();
                cut += usize::from(features.cut);
                for (output, rows) in outputs.iter_mut().zip(&features.layers) {
                    output.write_rows(rows)?;
                }
            }
        }
        for (output, entry) in outputs.into_iter().zip(entries) {
            let rows = output.finish()? as usize;
            entry.write(Note {
                of: entry.of.clone(),
                width,
                rows,
                crc32c: 0,
                left_out: left_out.clone(),
                cut,
            })?;
        }
        Ok(())
    }
}

fn window_features(
    encoder: &mut Encoder,
    file: &Tagged,
    window: &[Sentence],
    rows: &WordRows,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Features>> {
    let texts: Vec<_> = window.iter().map(|sentence| joined(&sentence.words)).collect();
    let passages: Vec<Passage> = texts
        .iter()
        .map(|(text, words)| Passage { item: Item { instruction: "", text }, words: Some(words) })
        .collect();
    let at = |i: usize, e: Error| {
        let line = window[i].lines.first().copied().unwrap_or(0);
        Error::file(&file.path, message![format!("line {line}: "), e.message()])
    };
    encoder.words(&passages, rows, at, progress)
}

/// One layer of one file in the folder.
struct Entry {
    folder: PathBuf,
    name: String,
    of: Value,
    /// Whether another process may have written it.
    checked: bool,
}

impl Entry {
    fn path(&self, ending: &str) -> PathBuf {
        self.folder.join(format!("{}.{ending}", self.name))
    }

    /// The table, if there is one; an error says what is wrong with it.
    fn open(&self, file: &Tagged) -> std::result::Result<Option<Table>, String> {
        let [npy, json] = [self.path("npy"), self.path("json")];
        if !json.exists() {
            return Ok(None);
        }
        let said = |e: Error| e.to_string();
        let note: Note =
            serde_json::from_value(read_json(&json).map_err(said)?).map_err(|e| e.to_string())?;
        let rows = VectorFile::open(&npy).map_err(said)?;
        let words: usize = file.sentences.iter().map(|s| s.words.len()).sum();
        let (got, wanted) =
            ([rows.rows(), rows.width()], [words.saturating_sub(note.left_out.len()), note.width]);
        let rising = note.left_out.is_sorted() && note.left_out.last().is_none_or(|last| *last < words);
        if got != wanted || note.of != self.of || !rising {
            return Err(format!("is of {wanted:?} rows and numbers, the file beside it has {got:?}"));
        }
        let Some(floats) = rows.floats() else { return Err("the rows beside it are no f32".into()) };
        if self.checked && crc32c::crc32c(bytemuck::cast_slice(floats)) != note.crc32c {
            return Err("the rows beside it have changed since they were written".into());
        }
        let width = rows.width();
        Ok(Some(Table { rows: Rows::File(rows), width, left_out: note.left_out, cut: note.cut }))
    }

    /// The second file, behind the first.
    fn write(&self, mut note: Note) -> Result<()> {
        if self.checked {
            let rows = VectorFile::open(&self.path("npy"))?;
            note.crc32c = crc32c::crc32c(bytemuck::cast_slice(rows.floats().unwrap_or_default()));
        }
        atomic::write_json(&self.path("json"), &note)
    }
}

/// Of the words and where sentences end.
fn words_hash(file: &Tagged) -> String {
    let mut hash = Sha256::new();
    for sentence in &file.sentences {
        for word in &sentence.words {
            hash.update((word.len() as u64).to_le_bytes());
            hash.update(word);
        }
        hash.update(u64::MAX.to_le_bytes());
    }
    hex(&hash.finalize())
}

fn hash(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
