//! How alike two vectors are, in f64.

/// The inner product.
pub fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// The cosine; 0 if one of them is zero.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let norms = (dot(a, a) * dot(b, b)).sqrt();
    if norms > 0.0 { dot(a, b) / norms } else { 0.0 }
}

/// The length of the difference.
pub fn euclidean(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>().sqrt()
}

/// The sum of the absolute differences.
pub fn manhattan(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs()).sum()
}

/// How alike two vectors are.
pub type Similarity = fn(&[f32], &[f32]) -> f64;

/// The four similarities under MTEB's names; distances are turned round.
pub const SIMILARITIES: [(&str, Similarity); 4] = [
    ("cosine", cosine),
    ("dot", dot),
    ("euclidean", |a, b| -euclidean(a, b)),
    ("manhattan", |a, b| -manhattan(a, b)),
];

/// Scales every row to unit length; a row of zeros stays.
pub fn normalize(rows: &mut [f32], width: usize) {
    for row in rows.chunks_exact_mut(width) {
        let norm = dot(row, row).sqrt();
        if norm > 0.0 {
            row.iter_mut().for_each(|v| *v = (f64::from(*v) / norm) as f32);
        }
    }
}
