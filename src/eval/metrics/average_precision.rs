//! Average precision: the area under the steps of precision over recall.

/// `Σ (R_n - R_{n-1}) P_n` over the thresholds that the scores give, highest first; equal scores are one threshold. 0 where
/// nothing is positive. No score may be NaN.
pub fn average_precision(positive: &[bool], scores: &[f64]) -> f64 {
    assert_eq!(positive.len(), scores.len(), "one score per row");
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&i, &j| scores[j].total_cmp(&scores[i]));
    let (mut seen, mut found, mut sum) = (0, 0, 0.0);
    // By ==, not by total_cmp: -0 and 0 are one value.
    for tied in order.chunk_by(|&i, &j| scores[i] == scores[j]) {
        let here = tied.iter().filter(|&&i| positive[i]).count();
        seen += tied.len();
        found += here;
        sum += here as f64 * (found as f64 / seen as f64);
    }
    if found > 0 { sum / found as f64 } else { 0.0 }
}
