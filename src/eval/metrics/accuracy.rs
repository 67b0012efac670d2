//! Accuracy, and precision, recall and F1 averaged over classes.

/// Three measures of one class, or their average over classes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Averages {
    /// Right answers among those that name the class; 0 if none does.
    pub precision: f64,
    /// Right answers among the rows of the class; 0 if it has none.
    pub recall: f64,
    /// Harmonic mean of the two.
    pub f1: f64,
}

/// How well predicted labels agree with true ones.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scores {
    /// The part of the rows that is right.
    pub accuracy: f64,
    /// Every class counts alike.
    pub by_class: Averages,
    /// A class counts as often as it has rows.
    pub by_row: Averages,
}

/// Compares labels row by row. Averages are over the classes that occur on either side, as scikit-learn has it; of no row
/// at all everything is 0.
pub fn scores(truth: &[usize], predicted: &[usize]) -> Scores {
    assert_eq!(truth.len(), predicted.len(), "one prediction per row");
    let classes = truth.iter().chain(predicted).max().map_or(0, |last| last + 1);
    // Per class: rows, predictions, right ones.
    let mut counts = vec![[0usize; 3]; classes];
    for (&t, &p) in truth.iter().zip(predicted) {
        counts[t][0] += 1;
        counts[p][1] += 1;
        counts[t][2] += usize::from(t == p);
    }
    counts.retain(|[rows, predictions, _]| rows + predictions > 0);
    let ratio = |a: usize, b: usize| if b > 0 { a as f64 / b as f64 } else { 0.0 };
    let average = |weight: &dyn Fn(usize) -> f64| {
        let mut sums = Averages::default();
        let mut total = 0.0;
        for &[rows, predictions, right] in &counts {
            let w = weight(rows);
            sums.precision += w * ratio(right, predictions);
            sums.recall += w * ratio(right, rows);
            sums.f1 += w * ratio(2 * right, rows + predictions);
            total += w;
        }
        let total = if total > 0.0 { total } else { 1.0 };
        Averages { precision: sums.precision / total, recall: sums.recall / total, f1: sums.f1 / total }
    };
    Scores {
        accuracy: ratio(counts.iter().map(|c| c[2]).sum(), truth.len()),
        by_class: average(&|_| 1.0),
        by_row: average(&|rows| rows as f64),
    }
}
