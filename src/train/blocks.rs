//! Token blocks for masked training: lines tokenised once, grouped, and kept in a temporary file.

use crate::error::{Error, Result};
use crate::text::tokenizer::{Encoded, Tokenizer};
use crate::train::data::{Items, Texts};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};

/// How lines make blocks of at most `length` tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Grouping {
    /// As the reference: 1000 lines, each with its BOS, joined and cut into blocks of exactly `length`; the rest of each
    /// 1000 is dropped, and attention crosses lines.
    Joined,
    /// Joined and cut likewise, but attention stays within a line; blank lines and no other token are dropped.
    Apart,
    /// A line is a block, its end cut off (the reference's `line_by_line`); blank lines are dropped.
    Lines,
}

/// A block of tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Whether the tokenizer added the token (BOS, EOS): such tokens are never masked.
    pub special: Vec<bool>,
    /// Where the sequences in it start; the first is 0. Attention does not cross these.
    pub starts: Vec<usize>,
}

/// All blocks of a corpus.
pub struct Blocks {
    file: File,
    /// Tokens in front of each block, and in all.
    starts: Vec<u64>,
    hash: u64,
}

/// Lines that the reference's `map` hands to `group_texts` at a time.
const GROUP: usize = 1000;
/// Groups that are tokenised side by side: bounds the memory.
const PARALLEL: usize = 32;

// A stored token: its id and two flags.
const SPECIAL: u32 = 1 << 31;
const START: u32 = 1 << 30;

impl Blocks {
    /// Tokenises all of `texts`, in order, with every core.
    pub fn new(
        texts: &mut Texts,
        tokenizer: &Tokenizer,
        grouping: Grouping,
        length: usize,
    ) -> Result<Blocks> {
        let rows: usize = texts.sizes().iter().sum();
        let mut file = BufWriter::new(tempfile::tempfile().map_err(Error::temporary)?);
        let (mut starts, mut tokens, mut carried) = (vec![0], 0, Vec::new());
        let mut put = |block: &[u32]| {
            file.write_all(bytemuck::cast_slice(block)).map_err(Error::temporary)?;
            starts.push(starts[starts.len() - 1] + block.len() as u64);
            Ok::<_, Error>(())
        };
        for from in (0..rows).step_by(GROUP * PARALLEL) {
            let lines = (from..rows.min(from + GROUP * PARALLEL)).map(|i| texts.read(i));
            let lines: Vec<String> = lines.collect::<Result<_>>()?;
            let rows: Vec<Vec<u32>> = lines
                .par_iter()
                .map(|line| match grouping != Grouping::Joined && line.trim().is_empty() {
                    true => Ok(Vec::new()),
                    false => stored(tokenizer, line, grouping, length),
                })
                .collect::<Result<_>>()?;
            tokens += rows.iter().map(Vec::len).sum::<usize>();
            for group in rows.chunks(GROUP) {
                match grouping {
                    Grouping::Joined => group.concat().chunks_exact(length).try_for_each(&mut put)?,
                    Grouping::Lines => group.iter().filter(|r| !r.is_empty()).try_for_each(|r| put(r))?,
                    Grouping::Apart => {
                        carried.extend(group.concat());
                        let whole = carried.len() / length * length;
                        carried[..whole].chunks_exact(length).try_for_each(&mut put)?;
                        carried.drain(..whole);
                    }
                }
            }
        }
        if !carried.is_empty() {
            put(&carried)?;
        }
        if starts.len() == 1 {
            let what = format!("{rows} lines with {tokens} tokens make no block of {length}");
            let hint =
                "joining drops what is left of 1000 lines; keep documents apart, or take shorter blocks";
            return Err(Error::unsupported(format!("{what}: {hint}")));
        }
        let hash = [grouping as u64, length as u64]
            .iter()
            .fold(texts.hash(), |h, &n| (h ^ n).wrapping_mul(0x0100_0000_01b3));
        let file = file.into_inner().map_err(|e| Error::temporary(e.into_error()))?;
        Ok(Blocks { file, starts, hash })
    }

    /// Blocks.
    pub fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// Never: making them refuses it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens in all blocks.
    pub fn tokens(&self) -> u64 {
        self.starts[self.len()]
    }
}

/// A line's tokens with their flags.
fn stored(tokenizer: &Tokenizer, line: &str, grouping: Grouping, length: usize) -> Result<Vec<u32>> {
    let mut row = tokenizer.encode(line, true)?;
    if grouping == Grouping::Lines {
        cut(&mut row, length);
    }
    let word = |(i, (&id, &special)): (usize, (&u32, &bool))| {
        let start = if i == 0 && grouping == Grouping::Apart { START } else { 0 };
        id | start | if special { SPECIAL } else { 0 }
    };
    Ok(row.ids.iter().zip(&row.special).enumerate().map(word).collect())
}

/// Cuts as Transformers does: the text loses its last tokens, what the tokenizer added stays.
fn cut(row: &mut Encoded, length: usize) {
    let excess = row.ids.len().saturating_sub(length);
    let end = row.special.iter().rposition(|s| !s).map_or(0, |i| i + 1);
    let gone = end.saturating_sub(excess)..end;
    row.ids.drain(gone.clone());
    row.special.drain(gone);
}

impl Items for Blocks {
    type Item = Block;

    fn sizes(&self) -> Vec<usize> {
        vec![self.len()]
    }

    fn hash(&self) -> u64 {
        self.hash
    }

    fn read(&mut self, i: usize) -> Result<Block> {
        let (from, to) = (self.starts[i], self.starts[i + 1]);
        let mut words = vec![0u32; (to - from) as usize];
        self.file
            .seek(SeekFrom::Start(from * 4))
            .and_then(|_| self.file.read_exact(bytemuck::cast_slice_mut(&mut words)))
            .map_err(Error::temporary)?;
        Ok(Block {
            ids: words.iter().map(|w| w & !(SPECIAL | START)).collect(),
            special: words.iter().map(|w| w & SPECIAL != 0).collect(),
            starts: (0..words.len()).filter(|&i| i == 0 || words[i] & START != 0).collect(),
        })
    }
}
