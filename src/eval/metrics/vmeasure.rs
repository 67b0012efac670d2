//! V-measure: whether clusters hold one class each, and classes lie in one cluster each (Rosenberg & Hirschberg, 2007).

use std::collections::BTreeMap;

/// Two sides of an assignment and their harmonic mean; none depends on how classes or clusters are numbered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VMeasure {
    /// 1 if every cluster holds rows of one class only.
    pub homogeneity: f64,
    /// 1 if all rows of a class lie in one cluster.
    pub completeness: f64,
    /// Harmonic mean of the two.
    pub v_measure: f64,
}

/// The measures of `clusters` against `classes`; all 1 if there is no row, as scikit-learn has it.
pub fn v_measure(classes: &[usize], clusters: &[usize]) -> VMeasure {
    assert_eq!(classes.len(), clusters.len(), "one cluster per row");
    let count = |labels: &[usize]| {
        let mut counts: BTreeMap<usize, f64> = BTreeMap::new();
        labels.iter().for_each(|&l| *counts.entry(l).or_default() += 1.0);
        counts
    };
    let (by_class, by_cluster) = (count(classes), count(clusters));
    let mut both: BTreeMap<[usize; 2], f64> = BTreeMap::new();
    classes.iter().zip(clusters).for_each(|(&c, &k)| *both.entry([c, k]).or_default() += 1.0);
    let n = classes.len() as f64;
    let entropy = |counts: &BTreeMap<usize, f64>| match counts.len() {
        1 => 0.0,
        _ => -counts.values().map(|m| m / n * (m / n).ln()).sum::<f64>(),
    };
    // Where one side is of one piece there is nothing to share, whatever rounding says.
    let shared = match by_class.len().min(by_cluster.len()) {
        0 | 1 => 0.0,
        _ => both.iter().map(|([c, k], m)| m / n * (m * n / (by_class[c] * by_cluster[k])).ln()).sum(),
    };
    let part = |whole: f64| if whole > 0.0 { f64::max(shared, 0.0) / whole } else { 1.0 };
    let (homogeneity, completeness) = (part(entropy(&by_class)), part(entropy(&by_cluster)));
    let sum = homogeneity + completeness;
    let v_measure = if sum > 0.0 { 2.0 * homogeneity * completeness / sum } else { 0.0 };
    VMeasure { homogeneity, completeness, v_measure }
}
