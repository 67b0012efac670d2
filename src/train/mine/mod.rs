//! Hard negatives by the model itself, for supervised training: of every query the documents that the model holds most
//! similar, and that are not known to answer it.
//!
//! The texts are the queries in the order of their first rows, each once, then the documents, each once: those of the
//! corpus in its order, then the positives that it lacks. Documents go through in windows: neither their texts nor their vectors are ever held whole. Held are
//! the queries' vectors, 4 bytes a number; of every query at most twice as many candidates as the rule wants, 8 bytes
//! each; 16 bytes a row of the pairs and of the corpus, and some 30 more for each text that is not another's repeat.
//!
//! No text is ever a negative of a query that it answers in any row: neither a positive of another row with the same
//! query, nor the query's own text, which sentence-transformers mines where it is some other query's positive.

mod documents;
mod pairs;
mod rule;
mod statistics;

pub use rule::{Found, Rule, Sampling, TakenAway};
pub use statistics::Column;

use crate::encode::texts::Item;
use crate::error::{Error, Message, Result, Setting, message};
use crate::eval::nearest::Nearest;
use crate::eval::similarity::{dot, normalize};
use crate::eval::source::Vectors;
use crate::format::atomic;
use crate::format::instruction::Instruction;
use crate::train::data::Texts;
use crate::train::stage;
use documents::{Document, Documents};
use pairs::Pairs;
use serde::Serialize;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Texts that are embedded and compared at a time.
const WINDOW: usize = 4096;

/// What a line of the output holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Form {
    /// All negatives of a row, `negative_1`, `negative_2` …; a row with fewer than are wanted is left out.
    #[default]
    NTuple,
    /// One negative: as many lines for a row as there are.
    Triplet,
}

/// What is read and written.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Rows as supervised training reads them; their own negatives are not read.
    pub data: PathBuf,
    /// Texts to mine from, beside all positives.
    pub corpus: Option<PathBuf>,
    /// The column, or key, of the corpus that holds the text; `None` is `text`.
    pub text_column: Option<String>,
    /// Whether the first bad row is an error; else they are left out.
    pub strict: bool,
    /// The JSONL file to write.
    pub output: PathBuf,
    /// What its lines hold.
    pub form: Form,
    /// Which documents are taken.
    pub rule: Rule,
    /// Texts that are embedded and compared at a time, 0 for 4096: the result is the same.
    pub window: usize,
}

/// A line of the output, in the order that sentence-transformers' trainer wants.
#[derive(Serialize)]
struct Line<'a> {
    query: &'a str,
    positive: OneOrSeveral<'a>,
    #[serde(flatten)]
    negatives: std::collections::BTreeMap<Key, &'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum OneOrSeveral<'a> {
    One(&'a str),
    Several(&'a [String]),
}

/// `negative`, or `negative_1` and so on.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Key(Option<usize>);

impl Serialize for Key {
    fn serialize<S: serde::Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        match self.0 {
            None => to.serialize_str("negative"),
            Some(number) => to.collect_str(&format_args!("negative_{number}")),
        }
    }
}

/// What was mined.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// Queries, each counted once.
    pub queries: usize,
    /// Documents, each counted once.
    pub documents: usize,
    /// Candidates of a query.
    pub range_max: usize,
    /// Rows of the pairs, and those of them whose pairs all stand in earlier rows.
    pub rows: usize,
    /// Likewise.
    pub repeated: usize,
    /// Rows for which there were fewer negatives than are wanted.
    pub lacking: usize,
    /// Lines that were written.
    pub lines: usize,
    /// Candidates that were taken away.
    pub taken_away: TakenAway,
    /// Cosines of queries and their positives, each pair once.
    pub positives: Column,
    /// Of queries and the negatives that were taken, for each positive.
    pub negatives: Column,
    /// How far those are below the positive.
    pub differences: Column,
}

/// Files that were read through, before a model is.
pub struct Miner {
    options: Options,
    candidates: usize,
    pairs: Pairs,
    documents: Documents,
    /// What was found in them, to show.
    pub lines: Vec<Message>,
}

impl Miner {
    /// Reads through pairs and corpus, and refuses what cannot be written or mined.
    pub fn open(options: Options) -> Result<Miner> {
        options.rule.candidates(0)?;
        if options.data.is_dir() {
            let what = "is a folder, a file of pairs was wanted: each data set has a run of its own";
            return Err(Error::file(&options.data, what));
        }
        // Now, not after hours of work: can it be written at all?
        atomic::beside(&options.output)?;
        let pairs = Pairs::open(&options.data, options.strict)?;
        let mut lines = stage::found("data", pairs.report());
        let corpus = match &options.corpus {
            None => None,
            Some(path) => {
                let texts = Texts::open_in(path, options.text_column.as_deref(), options.strict)?;
                lines.extend(stage::found("corpus", texts.report()));
                Some((texts, path.as_path()))
            }
        };
        let documents = Documents::new(&options.data, corpus);
        let candidates = options.rule.candidates(pairs.most_positives())?;
        Ok(Miner { options, candidates, pairs, documents, lines })
    }

    /// Mines by these vectors, and writes the file.
    pub fn run(mut self, vectors: &mut Vectors, instruction: &Instruction) -> Result<Summary> {
        let queries = self.queries(vectors, &instruction.query)?;
        let candidates = self.candidates.min(self.documents.most(&self.pairs));
        let mut nearest = Nearest::new(queries, vectors.width(), candidates);
        let cosines = self.search(&mut nearest, vectors, &instruction.document)?;
        vectors.finish()?;
        let mut summary = Summary {
            queries: self.pairs.queries(),
            documents: self.documents.count(),
            range_max: self.candidates,
            rows: self.pairs.rows().len(),
            repeated: self.pairs.rows().iter().filter(|query| query.is_none()).count(),
            ..Summary::default()
        };
        let taken = self.select(nearest, &cosines, &mut summary);
        self.write(&taken, &mut summary)?;
        Ok(summary)
    }

    fn window(&self) -> usize {
        if self.options.window == 0 { WINDOW } else { self.options.window }
    }

    /// The unit vectors of all queries.
    fn queries(&mut self, vectors: &mut Vectors, instruction: &str) -> Result<Vec<f32>> {
        let (n, window) = (self.pairs.queries(), self.window());
        let mut rows = Vec::with_capacity(n * vectors.width());
        for first in (0..n).step_by(window) {
            let places = first..(first + window).min(n);
            let forms = places.map(|query| self.pairs.query_form(query)).collect::<Result<Vec<_>>>()?;
            let items = forms.iter().map(|(_, form)| Item {
                instruction: form.prompt.as_deref().unwrap_or(instruction),
                text: &form.query,
            });
            let at = |i: usize, what| {
                let line = forms[i].0.line;
                Error::file(&self.options.data, message![format!("line {line}, query: "), what])
            };
            rows.extend(vectors.rows(&items.collect::<Vec<_>>(), at)?);
        }
        normalize(&mut rows, vectors.width());
        Ok(rows)
    }

    /// Has all documents go by; the cosine of every link.
    fn search(
        &mut self,
        nearest: &mut Nearest,
        vectors: &mut Vectors,
        instruction: &str,
    ) -> Result<Vec<f32>> {
        let (c, window) = (vectors.width(), self.window());
        let answered = self.pairs.answered();
        let mut cosines = vec![0.0; self.pairs.links()];
        loop {
            let documents = self.documents.window(&mut self.pairs, window)?;
            if documents.is_empty() {
                return Ok(cosines);
            }
            let items = documents.iter().map(|document| Item { instruction, text: &document.text });
            let at = |i: usize, what| self.documents.wrong(&documents[i], what);
            let mut rows = vectors.rows(&items.collect::<Vec<_>>(), at)?;
            normalize(&mut rows, c);
            for (document, row) in documents.iter().zip(rows.chunks_exact(c)) {
                let Some(positive) = document.positive else { continue };
                let from = answered.partition_point(|link| link[0] < positive);
                for [_, query, link] in answered[from..].iter().take_while(|link| link[0] == positive) {
                    cosines[*link as usize] = dot(nearest.query(*query as usize), row) as f32;
                }
            }
            let pairs = &self.pairs;
            nearest.add_numbered(&rows, |query, i| {
                let Document { positive, twin, .. } = &documents[i];
                *twin == Some(query as u32) || positive.is_some_and(|positive| pairs.answers(query, positive))
            });
        }
    }

    /// The negatives of every query.
    fn select(&self, nearest: Nearest, cosines: &[f32], summary: &mut Summary) -> Vec<Vec<Found>> {
        let rule = &self.options.rule;
        let hits = nearest.into_hits();
        let mut taken = Vec::with_capacity(self.pairs.queries());
        for (query, candidates) in hits.numbered().enumerate() {
            let cosines = &cosines[self.pairs.links_of(query)];
            let least = cosines.iter().copied().fold(f32::INFINITY, f32::min);
            let negatives = rule.select(query as u32, &candidates, least, &mut summary.taken_away);
            let written = self.options.form == Form::Triplet || negatives.len() == rule.negatives;
            for &cosine in cosines {
                summary.positives.push(cosine);
                for (score, _) in negatives.iter().filter(|_| written) {
                    summary.negatives.push(*score);
                    summary.differences.push(cosine - score);
                }
            }
            taken.push(negatives);
        }
        let Summary { positives, negatives, differences, .. } = summary;
        [positives, negatives, differences].into_iter().for_each(Column::sort);
        taken
    }

    /// Writes a line, or several, for every row that says something new.
    fn write(&mut self, taken: &[Vec<Found>], summary: &mut Summary) -> Result<()> {
        let output = &self.options.output;
        let failed = |e| Error::io(output, e);
        let mut file = BufWriter::new(atomic::beside(output)?);
        for row in 0..self.pairs.rows().len() {
            let Some(query) = self.pairs.rows()[row] else { continue };
            let found = &taken[query as usize];
            let lacking = found.len() < self.options.rule.negatives;
            summary.lacking += usize::from(lacking);
            if lacking && self.options.form == Form::NTuple {
                continue;
            }
            let form = self.pairs.form(row)?;
            let texts = found.iter().map(|(_, document)| self.documents.text(&mut self.pairs, *document));
            let texts = texts.collect::<Result<Vec<_>>>()?;
            let positive = || match form.positives.as_slice() {
                [one] => OneOrSeveral::One(one),
                several => OneOrSeveral::Several(several),
            };
            let (tuples, numbered) = match self.options.form {
                Form::NTuple => (texts.chunks(texts.len().max(1)), texts.len() > 1),
                Form::Triplet => (texts.chunks(1), false),
            };
            for tuple in tuples {
                let keys = (1..).map(|number| Key(numbered.then_some(number)));
                let negatives = keys.zip(tuple.iter().map(String::as_str)).collect();
                let prompt = form.prompt.as_deref();
                let line = Line { query: &form.query, positive: positive(), negatives, prompt };
                serde_json::to_writer(&mut file, &line).map_err(|e| failed(e.into()))?;
                file.write_all(b"\n").map_err(failed)?;
                summary.lines += 1;
            }
        }
        if summary.lines == 0 {
            let what =
                "no query has as many negatives as are wanted: nothing is written; try wider margins, fewer ";
            let more = message![what, Setting::Negatives, ", or a larger ", Setting::RangeMax];
            return Err(Error::file(&self.options.data, more));
        }
        atomic::publish(file.into_inner().map_err(|e| failed(e.into_error()))?, output)
    }

    /// The files that are read.
    pub fn inputs(options: &Options) -> impl Iterator<Item = &Path> {
        std::iter::once(options.data.as_path()).chain(options.corpus.as_deref())
    }
}
