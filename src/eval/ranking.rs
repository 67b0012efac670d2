//! Figures of ranked lists, as trec_eval has them, which MTEB asks.

use super::scores::Scores;

/// Where MTEB cuts the lists.
pub const CUTS: [usize; 7] = [1, 3, 5, 10, 20, 100, 1000];

/// The figures that are cut.
const NAMES: [&str; 6] = ["ndcg", "map", "recall", "precision", "mrr", "hit_rate"];

/// Sums over queries, at every cut.
#[derive(Clone, Debug, Default)]
pub struct Ranking {
    queries: usize,
    sums: [[f64; CUTS.len()]; NAMES.len()],
}

impl Ranking {
    /// Adds a query: the grades of what was found, best first (0 where not judged), and all grades above 0 that there are.
    pub fn add(&mut self, found: &[i64], judged: &[i64]) {
        let relevant = judged.iter().filter(|g| **g > 0).count();
        let mut ideal: Vec<i64> = judged.to_vec();
        ideal.sort_by(|a, b| b.cmp(a));
        self.queries += 1;
        for (c, &cut) in CUTS.iter().enumerate() {
            let top = &found[..found.len().min(cut)];
            let (mut hits, mut precisions, mut first) = (0, 0.0, 0.0);
            for (i, _) in top.iter().enumerate().filter(|(_, g)| **g > 0) {
                hits += 1;
                precisions += f64::from(hits) / (i + 1) as f64;
                if hits == 1 {
                    first = 1.0 / (i + 1) as f64;
                }
            }
            let share = |x: f64, of: f64| if of > 0.0 { x / of } else { 0.0 };
            let all = relevant as f64;
            let figures = [
                share(gain(top), gain(&ideal[..ideal.len().min(cut)])),
                share(precisions, all),
                share(f64::from(hits), all),
                f64::from(hits) / cut as f64,
                first,
                f64::from(hits.min(1)),
            ];
            figures.iter().zip(&mut self.sums).for_each(|(figure, sums)| sums[c] += figure);
        }
    }

    /// Means over the queries under MTEB's names, `main` before all.
    pub fn scores(&self, main: &str) -> Scores {
        let mut scores = Scores::new(main);
        let mean = |sum: f64| (self.queries > 0).then(|| sum / self.queries as f64);
        for (name, sums) in NAMES.iter().zip(&self.sums) {
            CUTS.iter().zip(sums).for_each(|(cut, sum)| scores.add(format!("{name}_at_{cut}"), mean(*sum)));
        }
        // So MTEB has it for retrieval.
        scores.add("accuracy", mean(self.sums[2][0]));
        scores
    }
}

/// The grades, each divided by the logarithm of its rank.
fn gain(grades: &[i64]) -> f64 {
    let gains = grades.iter().enumerate().filter(|(_, g)| **g > 0);
    gains.map(|(i, g)| *g as f64 / ((i + 2) as f64).log2()).sum()
}
