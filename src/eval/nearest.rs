//! The most similar rows of a matrix that comes in windows: every product is computed, none is estimated.

use crate::device::cpu::{Matrix, token_matmul};
use rayon::prelude::*;
use std::cmp::Ordering;

/// Queries of one product: its scores are what is held besides the vectors.
const QUERIES: usize = 1024;

/// Scores that are compared with their thresholds at once: a cache line.
const LANES: usize = 16;

/// A document that was found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hit<'a> {
    /// How similar it is.
    pub score: f32,
    /// Its name.
    pub id: &'a str,
}

/// A document of a query's list: how far its score is from the largest there could be, above its number in the order they
/// came. So the better is the smaller, and lists are cut and sorted as integers.
type Candidate = u64;

const SIGN: u32 = 1 << 31;

fn candidate(score: f32, document: u32) -> Candidate {
    // -0 and 0 are one score.
    let bits = (score + 0.0).to_bits();
    let behind = if bits >> 31 == 1 { bits } else { !bits ^ SIGN };
    u64::from(behind) << 32 | u64::from(document)
}

fn score(candidate: Candidate) -> f32 {
    let behind = (candidate >> 32) as u32;
    f32::from_bits(if behind >> 31 == 1 { behind } else { !(behind ^ SIGN) })
}

/// The names of all documents, end to end: a few bytes more of each than its letters.
#[derive(Default, PartialEq)]
struct Names {
    text: String,
    ends: Vec<usize>,
}

impl Names {
    fn push(&mut self, name: &str) {
        self.text.push_str(name);
        self.ends.push(self.text.len());
    }

    fn get(&self, candidate: Candidate) -> &str {
        let i = candidate as u32 as usize;
        &self.text[i.checked_sub(1).map_or(0, |before| self.ends[before])..self.ends[i]]
    }

    /// The better first: by score, and where that is equal by name, of which the later is the better, as trec_eval has it.
    /// Documents without names go by their numbers.
    fn order(&self, a: Candidate, b: Candidate) -> Ordering {
        let equal = || if self.ends.is_empty() { a.cmp(&b) } else { self.get(b).cmp(self.get(a)) };
        (a >> 32).cmp(&(b >> 32)).then_with(equal)
    }

    /// Lengthens a list, and cuts it to the `k` best where it is full; the worst of those is then its threshold.
    fn insert(&self, list: &mut Vec<Candidate>, candidate: Candidate, k: usize, least: &mut f32) {
        list.push(candidate);
        if list.len() == 2 * k {
            let worst = *list.select_nth_unstable(k - 1).1 >> 32;
            if list[k..].iter().any(|candidate| candidate >> 32 == worst) {
                list.select_nth_unstable_by(k - 1, |a, b| self.order(*a, *b));
            }
            list.truncate(k);
            *least = score(list[k - 1]);
        }
    }
}

/// The `k` best documents so far of every query.
///
/// Beside queries, their thresholds and a window of documents, it holds the names of all documents, the scores of one block
/// of queries by one window, and of every query at most `2k` candidates of 8 bytes.
pub struct Nearest {
    queries: Vec<f32>,
    width: usize,
    k: usize,
    /// Of every query, at most `2k`, among them the `k` best.
    lists: Vec<Vec<Candidate>>,
    /// By query: what is below is not among the best. Each block of queries is filled to whole lines, which nothing reaches.
    least: Vec<f32>,
    documents: usize,
    names: Names,
    scores: Vec<f32>,
}

impl Nearest {
    /// For these queries, a row each; `k` is at least 1.
    pub fn new(queries: Vec<f32>, width: usize, k: usize) -> Nearest {
        assert!(k > 0, "none is to be found");
        let n = queries.len() / width;
        let mut least = vec![f32::NEG_INFINITY; n];
        least.resize(n.next_multiple_of(LANES), f32::INFINITY);
        let (lists, names, scores) = (vec![Vec::new(); n], Names::default(), Vec::new());
        Nearest { queries, width, k, lists, least, documents: 0, names, scores }
    }

    /// The row of a query.
    pub fn query(&self, query: usize) -> &[f32] {
        &self.queries[query * self.width..][..self.width]
    }

    /// Takes a window of documents, a row and an id each; `excluded(query, id)` says which may not be found.
    pub fn add<S: AsRef<str> + Sync>(
        &mut self,
        rows: &[f32],
        ids: &[S],
        excluded: impl Fn(usize, &str) -> bool + Sync,
    ) {
        assert_eq!(rows.len(), ids.len() * self.width, "one id per row");
        ids.iter().for_each(|id| self.names.push(id.as_ref()));
        self.add_numbered(rows, |query, i| excluded(query, ids[i].as_ref()));
    }

    /// Takes a window of documents, known by their numbers alone in the order in which they come: of equal ones the first
    /// is the better. `excluded(query, i)` says of the window's rows which may not be found. Either all windows have
    /// names, or none has.
    pub fn add_numbered(&mut self, rows: &[f32], excluded: impl Fn(usize, usize) -> bool + Sync) {
        let (c, k, n, before) = (self.width, self.k, rows.len() / self.width, self.documents);
        self.documents += n;
        u32::try_from(self.documents).expect("fewer than 2^32 documents");
        let blocks = self.queries.chunks(QUERIES * c).zip(self.lists.chunks_mut(QUERIES));
        for (block, ((queries, lists), least)) in blocks.zip(self.least.chunks_mut(QUERIES)).enumerate() {
            let (m, stride) = (lists.len(), least.len());
            self.scores.resize(self.scores.len().max(n * stride), 0.0);
            // A document's scores have the same bits in whatever window it comes.
            let (a, b) = (Matrix::rows(rows, n, c, c), Matrix::rows(queries, m, c, c).t());
            token_matmul(&mut self.scores, stride, false, 1.0, a, b, true);
            let (scores, names) = (&self.scores[..n * stride], &self.names);
            // Each thread reads as long a piece of a document's scores as there is: the first line of a piece is what costs.
            let strip = stride.div_ceil(rayon::current_num_threads()).next_multiple_of(LANES);
            let strips = lists.par_chunks_mut(strip).zip(least.par_chunks_mut(strip)).enumerate();
            strips.for_each(|(place, (lists, least))| {
                let first = place * strip;
                for (i, row) in scores.chunks_exact(stride).enumerate() {
                    let lines = row[first..][..least.len()].as_chunks::<LANES>().0;
                    for (line, scores) in lines.iter().enumerate() {
                        let mut passed = passed(scores, &least.as_chunks::<LANES>().0[line]);
                        while passed != 0 {
                            let lane = passed.trailing_zeros() as usize;
                            passed &= passed - 1;
                            let query = line * LANES + lane;
                            if excluded(block * QUERIES + first + query, i) {
                                continue;
                            }
                            let found = candidate(scores[lane], (before + i) as u32);
                            names.insert(&mut lists[query], found, k, &mut least[query]);
                        }
                    }
                }
            });
        }
    }

    /// The best of every query.
    pub fn into_hits(self) -> Hits {
        let (k, names, mut lists) = (self.k, self.names, self.lists);
        lists.par_iter_mut().for_each(|list| {
            list.sort_unstable();
            let equal = list.chunk_by_mut(|a, b| a >> 32 == b >> 32).filter(|equal| equal.len() > 1);
            equal.for_each(|equal| equal.sort_unstable_by(|a, b| names.order(*a, *b)));
            list.truncate(k);
        });
        Hits { names, lists }
    }
}

/// Which scores are not below their thresholds, a bit each.
fn passed(scores: &[f32; LANES], least: &[f32; LANES]) -> u32 {
    (0..LANES).fold(0, |set, lane| set | u32::from(scores[lane] >= least[lane]) << lane)
}

/// What was found.
#[derive(PartialEq)]
pub struct Hits {
    names: Names,
    lists: Vec<Vec<Candidate>>,
}

impl Hits {
    /// Of every query, best first.
    pub fn queries(&self) -> impl Iterator<Item = Vec<Hit<'_>>> {
        let hit = |found: &Candidate| Hit { score: score(*found), id: self.names.get(*found) };
        self.lists.iter().map(move |list| list.iter().map(hit).collect())
    }

    /// Likewise, score and number of each.
    pub fn numbered(&self) -> impl Iterator<Item = Vec<(f32, u32)>> {
        self.lists.iter().map(|list| list.iter().map(|found| (score(*found), *found as u32)).collect())
    }
}

/// For every row of `a` the most similar row of `b`, the first of several.
pub fn nearest_rows(a: &[f32], b: &[f32], width: usize) -> Vec<usize> {
    let mut found = Vec::with_capacity(a.len() / width);
    let mut scores = Vec::new();
    for queries in a.chunks(QUERIES * width) {
        let m = queries.len() / width;
        let mut best = vec![(f32::NEG_INFINITY, 0); m];
        for (block, rows) in b.chunks(QUERIES * width).enumerate() {
            let rows_here = rows.len() / width;
            scores.clear();
            scores.resize(rows_here * m, 0.0f32);
            let (x, y) =
                (Matrix::rows(rows, rows_here, width, width), Matrix::rows(queries, m, width, width).t());
            token_matmul(&mut scores, m, false, 1.0, x, y, true);
            for (i, row) in scores.chunks_exact(m).enumerate() {
                for (best, score) in best.iter_mut().zip(row) {
                    if *score > best.0 {
                        *best = (*score, block * QUERIES + i);
                    }
                }
            }
        }
        found.extend(best.into_iter().map(|(_, i)| i));
    }
    found
}
