//! MTEB's n-shot samples: so many training rows of each label, several times over.

use super::mersenne::Mersenne;

/// The rows of each experiment, in the order in which they were drawn.
///
/// As MTEB 2 does it: all rows are shuffled by `RandomState(seed)`, a fresh one each time, on top of the last experiment's
/// order; then a row is taken while its label has fewer than `per_label`. Equal to MTEB's, row for row. (MTEB 1 went on
/// with one generator, so its later experiments have other rows.)
pub fn samples(labels: &[usize], per_label: usize, experiments: usize, seed: u32) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..labels.len()).collect();
    let mut experiment = || {
        Mersenne::new(seed).shuffle(&mut order);
        let mut taken = vec![0; labels.iter().max().map_or(0, |last| last + 1)];
        let few = |&row: &usize| {
            taken[labels[row]] += 1;
            taken[labels[row]] <= per_label
        };
        order.iter().copied().filter(few).collect()
    };
    (0..experiments).map(|_| experiment()).collect()
}
