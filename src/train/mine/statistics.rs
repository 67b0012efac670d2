//! What is said of many cosines: their number, mean, deviation and quantiles.

/// Cosines.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Column(Vec<f32>);

impl Column {
    /// Takes one more.
    pub(super) fn push(&mut self, value: f32) {
        self.0.push(value);
    }

    /// Puts them in order, when all are there.
    pub(super) fn sort(&mut self) {
        self.0.sort_unstable_by(f32::total_cmp);
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The mean; none of nothing.
    pub fn mean(&self) -> Option<f64> {
        let sum: f64 = self.0.iter().map(|v| f64::from(*v)).sum();
        (!self.0.is_empty()).then(|| sum / self.0.len() as f64)
    }

    /// The deviation of a sample; none of fewer than two.
    pub fn deviation(&self) -> Option<f64> {
        let (mean, n) = (self.mean()?, self.0.len());
        let squares: f64 = self.0.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum();
        (n > 1).then(|| (squares / (n - 1) as f64).sqrt())
    }

    /// The value with this part of all below it, 0 to 1, between two by their distance; none of nothing.
    pub fn quantile(&self, part: f64) -> Option<f64> {
        let at = part * self.0.len().checked_sub(1)? as f64;
        let (low, high) = (f64::from(self.0[at.floor() as usize]), f64::from(self.0[at.ceil() as usize]));
        Some(low + (high - low) * at.fract())
    }
}
