//! `encode --nearest K`: which texts lie closest to which, for a person to judge.

use crate::cli::print;
use crate::error::{Error, Result};

/// Texts and their unit vectors, held in memory.
pub struct Nearest {
    k: usize,
    width: usize,
    texts: Vec<String>,
    units: Vec<f32>,
}

/// More texts than a person reads, and few enough for all pairs.
const MOST: usize = 10_000;

impl Nearest {
    /// `k` neighbours each.
    pub fn new(k: usize, width: usize) -> Nearest {
        Nearest { k, width, texts: Vec::new(), units: Vec::new() }
    }

    /// Takes texts and their rows.
    pub fn add(&mut self, texts: impl Iterator<Item = String>, rows: &[f32]) -> Result<()> {
        self.texts.extend(texts);
        if self.texts.len() > MOST {
            return Err(Error::usage(format!("--nearest compares all pairs and takes at most {MOST} texts")));
        }
        for row in rows.chunks_exact(self.width) {
            let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt().max(1e-12);
            self.units.extend(row.iter().map(|v| v / norm));
        }
        Ok(())
    }

    /// Prints the list to stdout.
    pub fn print(&self) -> Result<()> {
        let vectors: Vec<&[f32]> = self.units.chunks_exact(self.width).collect();
        for (i, text) in self.texts.iter().enumerate() {
            let others = (0..vectors.len()).filter(|&j| j != i);
            let cosine = |j: usize| vectors[i].iter().zip(vectors[j]).map(|(a, b)| a * b).sum::<f32>();
            let mut scored: Vec<(f32, usize)> = others.map(|j| (cosine(j), j)).collect();
            scored.sort_by(|a, b| b.0.total_cmp(&a.0));
            let lines =
                scored.iter().take(self.k).map(|(score, j)| format!("  {score:.3}  {}\n", self.texts[*j]));
            print(&format!("{text}\n{}\n", lines.collect::<String>()))?;
        }
        Ok(())
    }
}
