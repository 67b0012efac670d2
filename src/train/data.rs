//! Batches of training data: shuffled by seed and epoch, from a position that can be saved.

use crate::error::{Error, Result};
use crate::format::table::Format;
use crate::rng::Stream;
use crate::train::forms::{self, Form};
use crate::train::instructions::{Instruction, Instructions};
use crate::train::rows::{Kind, Report, Rows};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::path::Path;

/// Something that has items by number, in data sets one after the other.
pub trait Items {
    /// One item.
    type Item;
    /// Items of each data set.
    fn sizes(&self) -> Vec<usize>;
    /// Tells this data from any other.
    fn hash(&self) -> u64;
    /// Item `i`.
    fn read(&mut self, i: usize) -> Result<Self::Item>;
    /// What is read from now on is of this epoch, from 0.
    fn begin(&mut self, _epoch: u64) {}
}

/// Texts: lines, or the column of a table or key of JSON that holds them.
pub struct Texts {
    rows: Rows,
    column: Option<String>,
    trim: bool,
}

impl Texts {
    /// Running text for masked training, as it stands: a blank line is a line.
    pub fn lines(path: &Path, strict: bool) -> Result<Texts> {
        Texts::lines_in(path, None, strict)
    }

    /// Texts to embed, without the white space around them; a blank one is a bad row.
    pub fn open(path: &Path, strict: bool) -> Result<Texts> {
        Texts::open_in(path, None, strict)
    }

    /// [`Texts::lines`] of another column than `text`.
    pub fn lines_in(path: &Path, column: Option<&str>, strict: bool) -> Result<Texts> {
        let rows = Rows::open(path, Kind::Line, column, strict)?;
        Ok(Texts { rows, column: column.map(String::from), trim: false })
    }

    /// [`Texts::open`] of another column than `text`.
    pub fn open_in(path: &Path, column: Option<&str>, strict: bool) -> Result<Texts> {
        let rows = Rows::open(path, Kind::Text, column, strict)?;
        Ok(Texts { rows, column: column.map(String::from), trim: true })
    }

    /// What was found.
    pub fn report(&self) -> &Report {
        &self.rows.report
    }
}

impl Items for Texts {
    type Item = String;

    fn sizes(&self) -> Vec<usize> {
        self.rows.sizes()
    }

    fn hash(&self) -> u64 {
        self.rows.hash()
    }

    fn read(&mut self, i: usize) -> Result<String> {
        let row = self.rows.read(i)?;
        let text = match self.rows.format(row.set) {
            Format::Text => row.text,
            _ => {
                let column = self.column.as_deref().unwrap_or("text");
                forms::text(&row.text, column).map_err(|_| self.rows.changed(&row))?
            }
        };
        Ok(if self.trim { text.trim().to_string() } else { text })
    }
}

/// A query, what answers it, and what does not, with what each is to be read for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Triple {
    /// In front of the query; may be empty.
    pub query_instruction: String,
    /// The query.
    pub query: String,
    /// In front of the positive and the negatives; may be empty.
    pub document_instruction: String,
    /// What answers it.
    pub positive: String,
    /// Hard negatives, none or more.
    pub negatives: Vec<String>,
}

/// Triples, one data set a file, instructions by data set.
pub struct Triples {
    rows: Rows,
    epoch: u64,
    instructions: Vec<Vec<Instruction>>,
}

impl Triples {
    /// Every data set must have an instruction, unless there are none at all.
    pub fn open(path: &Path, instructions: &Instructions, strict: bool) -> Result<Triples> {
        let rows = Rows::open(path, Kind::Triple, None, strict)?;
        let instructions = rows.sets().map(|set| instructions.of(set)).collect::<Result<_>>()?;
        Ok(Triples { rows, epoch: 0, instructions })
    }

    /// What was found.
    pub fn report(&self) -> &Report {
        &self.rows.report
    }

    /// Names of the data sets.
    pub fn sets(&self) -> impl Iterator<Item = &str> {
        self.rows.sets()
    }
}

impl Items for Triples {
    type Item = Triple;

    fn sizes(&self) -> Vec<usize> {
        self.rows.sizes()
    }

    fn hash(&self) -> u64 {
        self.rows.hash()
    }

    fn begin(&mut self, epoch: u64) {
        self.epoch = epoch;
    }

    fn read(&mut self, i: usize) -> Result<Triple> {
        let row = self.rows.read(i)?;
        let form = forms::triple(&row.text).map_err(|_| self.rows.changed(&row))?;
        let Form { prompt, query, mut positives, negatives } = form;
        // All of them have their turn, one an epoch: two in a batch would be each other's negatives.
        let positive = positives.swap_remove((self.epoch % positives.len() as u64) as usize);
        // Where a data set has several instructions the line decides, counted from 0 as the reference does.
        let of_set = &self.instructions[row.set];
        let (query_instruction, document_instruction) = match of_set.len() {
            0 => Default::default(),
            n => of_set[(row.line - 1) % n].clone().into_pair(),
        };
        let query_instruction = prompt.unwrap_or(query_instruction);
        Ok(Triple { query_instruction, query, document_instruction, positive, negatives })
    }
}

/// Where training is in its data: enough to go on exactly there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Passes over the data that are over.
    pub epoch: u64,
    /// Batches of this pass that are over.
    pub batch: u64,
    /// Seed of the order.
    pub seed: u64,
    /// Of the data and of how it is cut into batches.
    pub hash: u64,
}

/// How items make batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batching {
    /// Items of a batch.
    pub size: usize,
    /// A last batch with fewer items than this is dropped: `size` keeps whole batches only, 1 keeps every item.
    pub smallest: usize,
    /// A batch takes its items from one data set, the order of batches is shuffled across sets; else all items are
    /// shuffled together. The reference's supervised training does the former with whole batches only.
    pub same_set: bool,
}

/// A batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch<T> {
    /// Where it was: an epoch ends where this epoch is below the next batch's.
    pub position: Position,
    /// The data set of its first item.
    pub set: usize,
    /// Its items.
    pub items: Vec<T>,
}

/// Batch after batch, epoch after epoch, without end; every epoch in an order of its own.
pub struct Batches<I> {
    items: I,
    batching: Batching,
    starts: Vec<usize>,
    position: Position,
    /// The epoch that `order` and `cuts` belong to.
    ordered: Option<u64>,
    order: Vec<u32>,
    cuts: Vec<Range<u32>>,
}

/// Names of the streams that shuffle, apart from those of masks and dropout.
const SHUFFLE_ITEMS: u32 = 0x5348_0001;
const SHUFFLE_BATCHES: u32 = 0x5348_0002;

impl<I: Items> Batches<I> {
    /// From the beginning.
    pub fn new(items: I, batching: Batching, seed: u64) -> Result<Batches<I>> {
        let Batching { size, smallest, same_set } = batching;
        if size == 0 || smallest == 0 || smallest > size {
            return Err(Error::usage(format!(
                "batches of {size} items, a last one of at least {smallest}: expected 1 <= {smallest} <= {size}"
            )));
        }
        let sizes = items.sizes();
        let starts: Vec<usize> = std::iter::once(0)
            .chain(sizes.iter().scan(0, |end, n| {
                *end += n;
                Some(*end)
            }))
            .collect();
        let cut = [size as u64, smallest as u64, u64::from(same_set)];
        let hash = cut.iter().fold(items.hash(), |h, &n| (h ^ n).wrapping_mul(0x0100_0000_01b3));
        let position = Position { epoch: 0, batch: 0, seed, hash };
        let batches =
            Batches { items, batching, starts, position, ordered: None, order: Vec::new(), cuts: Vec::new() };
        if batches.per_epoch() == 0 {
            let most = sizes.iter().max().copied().unwrap_or(0);
            let which = if same_set { "the largest data set has" } else { "there are" };
            return Err(Error::usage(format!(
                "{which} {most} rows, a batch of {size} has {smallest} at least; take a smaller batch or more data"
            )));
        }
        Ok(batches)
    }

    /// The data.
    pub fn items(&self) -> &I {
        &self.items
    }

    /// Runs of items that are cut into batches apart: each data set, or everything.
    fn runs(&self) -> Vec<Range<usize>> {
        let all = [0, self.starts[self.starts.len() - 1]];
        let bounds = if self.batching.same_set { self.starts.as_slice() } else { &all };
        bounds.windows(2).map(|w| w[0]..w[1]).collect()
    }

    /// Batches in an epoch.
    pub fn per_epoch(&self) -> usize {
        let Batching { size, smallest, .. } = self.batching;
        self.runs().iter().map(|r| r.len() / size + usize::from(r.len() % size >= smallest)).sum()
    }

    /// Where the next batch is.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Batches from the next one to the end of its epoch, at least one.
    pub fn left(&self) -> usize {
        match self.per_epoch().saturating_sub(self.position.batch as usize) {
            0 => self.per_epoch(),
            left => left,
        }
    }

    /// Goes on at a saved position, which must come from the same data, batches and seed.
    pub fn seek(&mut self, to: Position) -> Result<()> {
        if (to.hash, to.seed) != (self.position.hash, self.position.seed) {
            let what =
                "the checkpoint was made with other training data, batches or seed; give it the same again";
            return Err(Error::unsupported(what));
        }
        if to.batch > self.per_epoch() as u64 {
            let what = format!("batch {} of an epoch of {} batches", to.batch, self.per_epoch());
            return Err(Error::unsupported(format!("the checkpoint's data position makes no sense: {what}")));
        }
        self.position = to;
        Ok(())
    }

    /// Puts the items and the batches of an epoch in its order.
    fn arrange(&mut self, epoch: u64) {
        let (seed, name) = (self.position.seed, [epoch as u32, (epoch >> 32) as u32]);
        self.order = (0..self.starts[self.starts.len() - 1] as u32).collect();
        self.cuts.clear();
        let Batching { size, smallest, .. } = self.batching;
        let mut stream = Stream::new(seed, [SHUFFLE_ITEMS, name[0], name[1]]);
        for run in self.runs() {
            stream.shuffle(&mut self.order[run.clone()]);
            let cut = run.clone().step_by(size).map(|from| from as u32..(from + size).min(run.end) as u32);
            self.cuts.extend(cut.filter(|c| c.len() >= smallest));
        }
        if self.batching.same_set {
            Stream::new(seed, [SHUFFLE_BATCHES, name[0], name[1]]).shuffle(&mut self.cuts);
        }
        self.ordered = Some(epoch);
    }

    /// The next batch.
    #[allow(clippy::should_implement_trait)] // it never ends, and it can fail
    pub fn next(&mut self) -> Result<Batch<I::Item>> {
        if self.position.batch >= self.per_epoch() as u64 {
            self.position = Position { epoch: self.position.epoch + 1, batch: 0, ..self.position };
        }
        let position = self.position;
        if self.ordered != Some(position.epoch) {
            self.arrange(position.epoch);
        }
        let cut = self.cuts[position.batch as usize].clone();
        let taken = &self.order[cut.start as usize..cut.end as usize];
        let set = self.starts.partition_point(|&start| start <= taken[0] as usize) - 1;
        self.items.begin(position.epoch);
        let items = taken.iter().map(|&i| self.items.read(i as usize)).collect::<Result<_>>()?;
        self.position.batch += 1;
        Ok(Batch { position, set, items })
    }
}
