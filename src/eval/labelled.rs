//! Texts with the class that people gave them: JSON lines `{"text": …, "label": …}`.

use super::rows::{self, Row};
use super::source::Vectors;
use crate::encode::texts::Item;
use crate::error::Result;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A class: a number, as MTEB's data sets have it, or a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(untagged, expecting = "a label was wanted, a whole number or a name")]
pub enum Label {
    /// By its value; numbers sort before names.
    Number(i64),
    /// By its bytes.
    Name(String),
}

/// A text and its class.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Labelled {
    /// The text.
    pub text: String,
    /// Its class.
    pub label: Label,
    /// The part of the set that it belongs to, where a set has several.
    #[serde(default)]
    pub set: String,
}

/// A file of them.
#[derive(Clone, Debug)]
pub struct File {
    /// Its name.
    pub path: PathBuf,
    /// Its rows.
    pub rows: Vec<Row<Labelled>>,
}

impl File {
    /// Reads `NAME.jsonl` of a folder (`.gz` and `.zst` too).
    pub fn read(folder: &Path, name: &str) -> Result<File> {
        let path = rows::file(folder, &format!("{name}.jsonl"))?;
        let rows = rows::read(&path, r#"{"text": …, "label": …}"#)?;
        Ok(File { path, rows })
    }

    /// A vector for each row.
    pub fn vectors(&self, vectors: &mut Vectors, instruction: &str) -> Result<Vec<f32>> {
        let items: Vec<Item> =
            self.rows.iter().map(|row| Item { instruction, text: &row.value.text }).collect();
        vectors.rows(&items, |i, what| rows::wrong(&self.path, self.rows[i].line, "text", what))
    }

    /// The rows without their places.
    pub fn values(&self) -> impl Iterator<Item = &Labelled> {
        self.rows.iter().map(|row| &row.value)
    }
}

/// The labels that occur, in order: a class is the place in this list.
pub fn classes<'a>(rows: impl IntoIterator<Item = &'a Labelled>) -> Vec<Label> {
    let labels: BTreeSet<&Label> = rows.into_iter().map(|row| &row.label).collect();
    labels.into_iter().cloned().collect()
}

/// The class of each row, by `classes`, which has them all.
pub fn numbers<'a>(rows: impl IntoIterator<Item = &'a Labelled>, classes: &[Label]) -> Vec<usize> {
    rows.into_iter().map(|row| classes.partition_point(|label| *label < row.label)).collect()
}
