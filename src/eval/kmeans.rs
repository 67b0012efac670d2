//! Mini-batch k-means as scikit-learn's `MiniBatchKMeans`: the same draws, in f32.
//!
//! Starts, batches and reassignments are drawn from the same generator in the same order, and sums of f32 are taken where
//! scikit-learn takes them; only the matrix products round otherwise. So most runs end in scikit-learn's clusters, and one
//! in which a row lay between two centers may end in others that are as good.

use super::mersenne::Mersenne;
use crate::device::cpu::{Matrix, matmul};
use crate::error::{Error, Result};
use rayon::prelude::*;

/// How to cluster: scikit-learn's `n_clusters`, `batch_size`, `n_init`, `max_iter` and `random_state`.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Clusters.
    pub clusters: usize,
    /// Rows of a step.
    pub batch: usize,
    /// Starts, of which the best is taken.
    pub starts: usize,
    /// Times that all rows could be seen, at most.
    pub rounds: usize,
    /// Of the generator.
    pub seed: u32,
}

/// A clustering.
#[derive(Clone, Debug)]
pub struct Clusters {
    /// `[K, C]`.
    pub centers: Vec<f32>,
    /// The nearest center of each row.
    pub labels: Vec<usize>,
    /// The sum of squared distances to them.
    pub inertia: f64,
    /// Batches seen.
    pub steps: usize,
}

/// A center that has seen fewer rows than this part of what the busiest has is put elsewhere.
const REASSIGNED: f32 = 0.01;
/// Batches without a lower smoothed inertia that end it.
const NO_IMPROVEMENT: usize = 10;
/// Rows whose distances one task takes.
const CHUNK: usize = 256;

/// Rows `[N, C]` of features.
#[derive(Clone, Copy)]
struct Rows<'a> {
    x: &'a [f32],
    width: usize,
}

impl<'a> Rows<'a> {
    fn len(self) -> usize {
        self.x.len() / self.width
    }

    fn row(self, i: usize) -> &'a [f32] {
        &self.x[i * self.width..][..self.width]
    }

    fn chosen(self, rows: &[usize]) -> Vec<f32> {
        rows.iter().flat_map(|&i| self.row(i)).copied().collect()
    }
}

/// Clusters rows `[N, width]` of `x`.
pub fn mini_batch_kmeans(x: &[f32], width: usize, options: Options) -> Result<Clusters> {
    let rows = Rows { x, width };
    let n = if width == 0 { 0 } else { rows.len() };
    if n < options.clusters || options.clusters == 0 {
        let wanted = options.clusters.max(1);
        let what =
            format!("{n} rows to cluster, at least {wanted} were wanted, one a cluster; give more rows");
        return Err(Error::usage(what));
    }
    if !x.iter().all(|v| v.is_finite()) {
        return Err(Error::usage("a feature is not finite, numbers were wanted; look at the vectors"));
    }
    let mut random = Mersenne::new(options.seed);
    let batch = options.batch.min(n);
    let mut fit = Fit {
        centers: start(rows, batch, options, &mut random),
        counts: vec![0.0; options.clusters],
        width,
        since: 0,
    };
    // Every row is as likely, by the sums that scikit-learn's f32 weights give.
    let weights = even_weights(n);
    let (mut smoothed, mut lowest, mut idle, mut steps) = (None, None, 0, 0);
    while steps < options.rounds * n / batch {
        let drawn: Vec<usize> = (0..batch).map(|_| random.choice(&weights)).collect();
        let inertia = fit.step(Rows { x: &rows.chosen(&drawn), width }, &mut random) / batch as f64;
        steps += 1;
        // The first tells of the start alone.
        if steps == 1 {
            continue;
        }
        let new = f64::min(batch as f64 * 2.0 / (n + 1) as f64, 1.0);
        let mean = smoothed.map_or(inertia, |old: f64| old * (1.0 - new) + inertia * new);
        smoothed = Some(mean);
        if lowest.is_none_or(|lowest| mean < lowest) {
            (lowest, idle) = (Some(mean), 0);
        } else {
            idle += 1;
        }
        if idle >= NO_IMPROVEMENT {
            break;
        }
    }
    let (labels, inertia) = nearest(rows, &fit.centers);
    Ok(Clusters { centers: fit.centers, labels, inertia, steps })
}

/// Running sums of `n` equal weights that add up to 1.
fn even_weights(n: usize) -> Vec<f64> {
    let weight = f64::from(1.0 / n as f32);
    let sums = (0..n).scan(0.0, |sum, _| {
        *sum += weight;
        Some(*sum)
    });
    let mut sums: Vec<f64> = sums.collect();
    let all = sums[n - 1];
    sums.iter_mut().for_each(|sum| *sum /= all);
    sums
}

/// The best of several k-means++ starts on a part of the rows, by the inertia of another part.
fn start(rows: Rows, batch: usize, options: Options, random: &mut Mersenne) -> Vec<f32> {
    let n = rows.len();
    let wanted = if 3 * batch < options.clusters { 3 * options.clusters } else { 3 * batch };
    let size = wanted.min(n);
    let drawn = |random: &mut Mersenne| -> Vec<usize> { (0..size).map(|_| random.below(n)).collect() };
    let judges = rows.chosen(&drawn(random));
    let mut best: Option<(f64, Vec<f32>)> = None;
    for _ in 0..options.starts.max(1) {
        let centers = if size < n {
            let part = rows.chosen(&drawn(random));
            plus_plus(Rows { x: &part, width: rows.width }, options.clusters, random)
        } else {
            plus_plus(rows, options.clusters, random)
        };
        let inertia = nearest(Rows { x: &judges, width: rows.width }, &centers).1;
        if best.as_ref().is_none_or(|(least, _)| inertia < *least) {
            best = Some((inertia, centers));
        }
    }
    best.map_or(Vec::new(), |(_, centers)| centers)
}

/// Greedy k-means++ (Arthur & Vassilvitskii, 2007): every further center is the best of a few rows, drawn by their squared
/// distance to the nearest one so far.
fn plus_plus(rows: Rows, clusters: usize, random: &mut Mersenne) -> Vec<f32> {
    let distances = |row: usize| -> Vec<f32> {
        let center = rows.row(row);
        rows.x.par_chunks_exact(rows.width).map(|row| squared_distance(row, center) as f32).collect()
    };
    let sum = |distances: &[f32]| distances.iter().map(|&d| f64::from(d)).sum::<f64>() as f32;
    let trials = 2 + (clusters as f64).ln() as usize;
    let mut chosen = vec![random.choice(&even_weights(rows.len()))];
    let mut closest = distances(chosen[0]);
    let mut potential = sum(&closest);
    for _ in 1..clusters {
        let drawn: Vec<f64> = (0..trials).map(|_| random.unit() * f64::from(potential)).collect();
        let mut running = closest.clone();
        (1..running.len()).for_each(|i| running[i] += running[i - 1]);
        let tried = drawn.iter().map(|&at| {
            let row = running.partition_point(|&sum| f64::from(sum) < at).min(rows.len() - 1);
            let mut left = distances(row);
            left.iter_mut().zip(&closest).for_each(|(new, old)| *new = old.min(*new));
            (row, sum(&left), left)
        });
        let best = tried.reduce(|best, other| if other.1 < best.1 { other } else { best });
        if let Some((row, sum, left)) = best {
            chosen.push(row);
            (potential, closest) = (sum, left);
        }
    }
    rows.chosen(&chosen)
}

fn squared_distance(a: &[f32], b: &[f32]) -> f64 {
    let ((a8, a_rest), (b8, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let square = |a: f32, b: f32| (f64::from(a) - f64::from(b)).powi(2);
    let mut sums = [0.0; 8];
    for (a, b) in a8.iter().zip(b8) {
        for i in 0..8 {
            sums[i] += square(a[i], b[i]);
        }
    }
    sums.iter().sum::<f64>() + a_rest.iter().zip(b_rest).map(|(&a, &b)| square(a, b)).sum::<f64>()
}

/// The nearest center of each row, the first of several, and the sum of squared distances to them.
fn nearest(rows: Rows, centers: &[f32]) -> (Vec<usize>, f64) {
    let (width, k) = (rows.width, centers.len() / rows.width);
    let squares: Vec<f32> = centers.chunks_exact(width).map(|c| c.iter().map(|v| v * v).sum()).collect();
    let centers_by_row = Matrix::rows(centers, k, width, width);
    let chunk = |x: &[f32]| {
        let n = x.len() / width;
        let mut scores = squares.repeat(n);
        matmul(&mut scores, k, true, -2.0, Matrix::rows(x, n, width, width), centers_by_row.t(), false);
        let lowest = |row: &[f32]| (1..k).fold(0, |best, j| if row[j] < row[best] { j } else { best });
        let labels: Vec<usize> = scores.chunks_exact(k).map(lowest).collect();
        let own = |label: usize| &centers[label * width..][..width];
        let distances = x.chunks_exact(width).zip(&labels).map(|(row, &l)| squared_distance(row, own(l)));
        let sum: f64 = distances.sum();
        (labels, sum)
    };
    let parts: Vec<(Vec<usize>, f64)> = rows.x.par_chunks(CHUNK * width).map(chunk).collect();
    let inertia = parts.iter().map(|(_, sum)| sum).sum();
    (parts.into_iter().flat_map(|(labels, _)| labels).collect(), inertia)
}

/// Centers, with the rows that each has seen.
struct Fit {
    centers: Vec<f32>,
    counts: Vec<f32>,
    width: usize,
    /// Rows since centers were last put elsewhere.
    since: usize,
}

impl Fit {
    /// Moves the centers towards the means of a batch; the batch's inertia before that.
    fn step(&mut self, batch: Rows, random: &mut Mersenne) -> f64 {
        let n = batch.len();
        self.since += n;
        let due = self.counts.contains(&0.0) || self.since >= 10 * self.counts.len();
        let (labels, inertia) = nearest(batch, &self.centers);
        let mut rows = vec![Vec::new(); self.counts.len()];
        labels.iter().enumerate().for_each(|(row, &label)| rows[label].push(row));
        let centers = self.centers.chunks_exact_mut(self.width).zip(&mut self.counts);
        for ((center, count), rows) in centers.zip(rows).filter(|(_, rows)| !rows.is_empty()) {
            center.iter_mut().for_each(|c| *c *= *count);
            for row in &rows {
                center.iter_mut().zip(batch.row(*row)).for_each(|(c, x)| *c += x);
            }
            *count += rows.len() as f32;
            let scale = 1.0 / *count;
            center.iter_mut().for_each(|c| *c *= scale);
        }
        if due {
            self.since = 0;
            self.reassign(batch, random);
        }
        inertia
    }

    /// Puts centers that see next to no rows on rows of the batch, at most half as many as that has.
    fn reassign(&mut self, batch: Rows, random: &mut Mersenne) {
        let most = self.counts.iter().copied().fold(0.0, f32::max);
        let mut idle: Vec<usize> = (0..self.counts.len()).collect();
        idle.retain(|&k| self.counts[k] < REASSIGNED * most);
        if idle.len() > batch.len() / 2 {
            idle.sort_by(|&a, &b| self.counts[a].total_cmp(&self.counts[b]));
            idle.truncate(batch.len() / 2);
            idle.sort_unstable();
        }
        if idle.is_empty() {
            return;
        }
        let mut order: Vec<usize> = (0..batch.len()).collect();
        random.shuffle(&mut order);
        for (&k, &row) in idle.iter().zip(&order) {
            self.centers[k * self.width..][..self.width].copy_from_slice(batch.row(row));
        }
        // As if they had seen as many as the least busy of the others, or they would be due again at once.
        let others = (0..self.counts.len()).filter(|k| idle.binary_search(k).is_err());
        let least = others.map(|k| self.counts[k]).fold(f32::INFINITY, f32::min);
        idle.iter().for_each(|&k| self.counts[k] = least);
    }
}
