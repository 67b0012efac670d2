//! The most similar rows of a matrix that comes in windows: every product is computed, none is estimated.

use crate::device::cpu::{Matrix, token_matmul};
use rayon::prelude::*;
use std::cmp::Ordering;
use std::sync::Arc;

/// Queries of one product: its scores are what is held besides the vectors.
const QUERIES: usize = 1024;

/// Queries of one task: their scores of a document fill one line of a cache.
const LANES: usize = 16;

/// A document that was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Hit {
    /// How similar it is.
    pub score: f32,
    /// Its name.
    pub id: Arc<str>,
}

impl Eq for Hit {}

impl Ord for Hit {
    /// By score, and where that is equal by name: the later name is the better, as trec_eval has it.
    fn cmp(&self, other: &Hit) -> Ordering {
        // -0 and 0 are one score.
        let (a, b) = (self.score + 0.0, other.score + 0.0);
        a.total_cmp(&b).then_with(|| self.id.cmp(&other.id))
    }
}

impl PartialOrd for Hit {
    fn partial_cmp(&self, other: &Hit) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The `k` best documents so far of a query, among at most twice as many.
#[derive(Clone)]
struct Best {
    hits: Vec<Hit>,
    /// What is below is not among the best.
    least: f32,
}

impl Best {
    fn push(&mut self, hit: Hit, k: usize) {
        self.hits.push(hit);
        if self.hits.len() == 2 * k {
            self.hits.select_nth_unstable_by(k - 1, |a, b| b.cmp(a));
            self.hits.truncate(k);
            self.least = self.hits[k - 1].score;
        }
    }
}

/// The `k` best documents so far of every query.
pub struct Nearest {
    queries: Vec<f32>,
    width: usize,
    k: usize,
    best: Vec<Best>,
}

impl Nearest {
    /// For these queries, a row each; `k` is at least 1.
    pub fn new(queries: Vec<f32>, width: usize, k: usize) -> Nearest {
        assert!(k > 0, "none is to be found");
        let best = vec![Best { hits: Vec::new(), least: f32::NEG_INFINITY }; queries.len() / width];
        Nearest { queries, width, k, best }
    }

    /// Takes a window of documents; `excluded(query, id)` says which may not be found.
    ///
    /// Beside queries and documents, the scores of one block of queries by one window are held, and `2k` documents a query.
    pub fn add(&mut self, rows: &[f32], ids: &[Arc<str>], excluded: impl Fn(usize, &str) -> bool + Sync) {
        let (c, k, n) = (self.width, self.k, ids.len());
        assert_eq!(rows.len(), n * c, "one id per row");
        let mut scores = Vec::new();
        for (block, (queries, best)) in
            self.queries.chunks(QUERIES * c).zip(self.best.chunks_mut(QUERIES)).enumerate()
        {
            let m = best.len();
            scores.clear();
            scores.resize(n * m, 0.0f32);
            // A document's scores have the same bits in whatever window it comes.
            let (a, b) = (Matrix::rows(rows, n, c, c), Matrix::rows(queries, m, c, c).t());
            token_matmul(&mut scores, m, false, 1.0, a, b, true);
            best.par_chunks_mut(LANES).enumerate().for_each(|(group, best)| {
                let first = group * LANES;
                for (row, id) in scores.chunks_exact(m).zip(ids) {
                    for (lane, (&score, best)) in row[first..].iter().zip(best.iter_mut()).enumerate() {
                        if score < best.least || excluded(block * QUERIES + first + lane, id) {
                            continue;
                        }
                        best.push(Hit { score, id: Arc::clone(id) }, k);
                    }
                }
            });
        }
    }

    /// The best of every query, best first.
    pub fn into_hits(self) -> Vec<Vec<Hit>> {
        let k = self.k;
        let sorted = |mut best: Best| {
            best.hits.sort_unstable_by(|a, b| b.cmp(a));
            best.hits.truncate(k);
            best.hits
        };
        self.best.into_iter().map(sorted).collect()
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
