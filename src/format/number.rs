//! How the numbers of a row are stored.

/// How the elements are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum OutputDtype {
    /// 32-bit floats.
    F32,
    /// 16-bit floats, rounded to nearest even.
    F16,
    /// 8-bit integers and one scale per row: value = integer · scale, scale = max|v| / 127.
    I8,
}

/// The step between two integers, where there is one; 0 for a row of zeros, whose integers are then all 0.
pub(super) fn row_scale(row: &[f32], dtype: OutputDtype) -> Option<f32> {
    (dtype == OutputDtype::I8).then(|| row.iter().fold(0.0f32, |most, v| most.max(v.abs())) / 127.0)
}

pub(super) fn quantized(value: f32, scale: f32) -> i8 {
    // The division can exceed 127 by a rounding, or by much where the scale itself is denormal.
    if scale > 0.0 { (value / scale).round().clamp(-127.0, 127.0) as i8 } else { 0 }
}
