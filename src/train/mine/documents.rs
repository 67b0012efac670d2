//! What negatives are mined from: the lines of a corpus, then the positives that are not among them, each text once.

use super::pairs::Pairs;
use crate::error::{Error, Message, Result, message};
use crate::train::data::{Items, Texts};
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// A document as it comes by.
pub(super) struct Document {
    /// Its text.
    pub(super) text: String,
    /// Its number among positives, if it is one.
    pub(super) positive: Option<u32>,
    /// The query that is the same text, if one is.
    pub(super) twin: Option<u32>,
    /// The line that it stands in, of the corpus or else of the pairs.
    line: (bool, usize),
}

/// Documents, one window at a time. Memory is 4 bytes a document, with a corpus up to 24, and what [`Texts`] takes.
pub(super) struct Documents {
    corpus: Option<Texts>,
    corpus_path: PathBuf,
    pairs_path: PathBuf,
    rows: usize,
    /// Of the corpus' documents so far; without a corpus, none.
    seen: HashSet<u64>,
    next: usize,
    /// By document, the row of the corpus, or its number among positives behind those.
    places: Vec<u32>,
}

impl Documents {
    pub(super) fn new(pairs_path: &Path, corpus: Option<(Texts, &Path)>) -> Documents {
        let rows = corpus.as_ref().map_or(0, |(texts, _)| texts.report().rows);
        let (corpus, corpus_path) = corpus.map_or((None, PathBuf::new()), |(t, path)| (Some(t), path.into()));
        let (seen, places) = (HashSet::new(), Vec::new());
        Documents { corpus, corpus_path, pairs_path: pairs_path.into(), rows, seen, next: 0, places }
    }

    /// Documents that have come by.
    pub(super) fn count(&self) -> usize {
        self.places.len()
    }

    /// Documents that could come by, repeats included.
    pub(super) fn most(&self, pairs: &Pairs) -> usize {
        self.rows + pairs.texts()
    }

    /// The next documents, at most so many; none at the end.
    pub(super) fn window(&mut self, pairs: &mut Pairs, most: usize) -> Result<Vec<Document>> {
        let mut window = Vec::new();
        while window.len() < most && self.next < self.most(pairs) {
            let place = self.next;
            self.next += 1;
            let (line, text) = self.at(pairs, place)?;
            let hash = pairs.identity.hash(&text);
            if self.corpus.is_some() && !self.seen.insert(hash) {
                continue;
            }
            let place = u32::try_from(place).map_err(|_| Error::usage("more than 2^32 documents"))?;
            self.places.push(place);
            let (positive, twin) = (pairs.positive(hash), pairs.query(hash));
            window.push(Document { text, positive, twin, line });
        }
        Ok(window)
    }

    /// What stands at a place, and its line.
    fn at(&mut self, pairs: &mut Pairs, place: usize) -> Result<((bool, usize), String)> {
        match &mut self.corpus {
            Some(corpus) if place < self.rows => Ok(((true, place), corpus.read(place)?)),
            _ => pairs.text(place - self.rows).map(|(line, text)| ((false, line), text)),
        }
    }

    /// The text of a document that has come by.
    pub(super) fn text(&mut self, pairs: &mut Pairs, document: u32) -> Result<String> {
        self.at(pairs, self.places[document as usize] as usize).map(|(_, text)| text)
    }

    /// An error of a document.
    pub(super) fn wrong(&self, document: &Document, what: Message) -> Error {
        match document.line {
            (true, row) => Error::file(&self.corpus_path, message![format!("text {}: ", row + 1), what]),
            (false, line) => {
                Error::file(&self.pairs_path, message![format!("line {line}, positive: "), what])
            }
        }
    }
}
