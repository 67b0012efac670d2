//! How the numbers of a row are stored.

use serde::{Deserialize, Serialize};

/// How the elements are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum OutputDtype {
    /// 32-bit floats.
    F32,
    /// 16-bit floats, rounded to nearest even.
    F16,
    /// 8-bit integers and one scale per row: value = integer · scale, scale = max|v| / 127.
    I8,
    /// One bit a number, 1 where it is above 0, the first the highest of its byte; the byte less 128.
    Binary,
    /// Likewise, the byte itself.
    Ubinary,
}

impl OutputDtype {
    /// Columns of a file for rows of `dim` numbers.
    pub(super) fn columns(self, dim: usize) -> usize {
        if self.is_packed() { dim / 8 } else { dim }
    }

    /// Bytes of a column.
    pub(super) fn bytes(self) -> usize {
        match self {
            OutputDtype::F32 => 4,
            OutputDtype::F16 => 2,
            OutputDtype::I8 | OutputDtype::Binary | OutputDtype::Ubinary => 1,
        }
    }

    /// Whether a byte holds eight numbers.
    pub(super) fn is_packed(self) -> bool {
        matches!(self, OutputDtype::Binary | OutputDtype::Ubinary)
    }
}

/// The bytes of a row whose numbers are bits.
pub(super) fn packed(row: &[f32], dtype: OutputDtype) -> impl Iterator<Item = u8> {
    let flip = if dtype == OutputDtype::Binary { 0x80 } else { 0 };
    let byte = move |eight: &[f32]| eight.iter().fold(0, |bits, &v| bits << 1 | u8::from(v > 0.0)) ^ flip;
    row.chunks_exact(8).map(byte)
}

/// The step between two integers, where there is one; 0 for a row of zeros, whose integers are then all 0.
pub(super) fn row_scale(row: &[f32], dtype: OutputDtype) -> Option<f32> {
    (dtype == OutputDtype::I8).then(|| row.iter().fold(0.0f32, |most, v| most.max(v.abs())) / 127.0)
}

pub(super) fn quantized(value: f32, scale: f32) -> i8 {
    // The division can exceed 127 by a rounding, or by much where the scale itself is denormal.
    if scale > 0.0 { (value / scale).round().clamp(-127.0, 127.0) as i8 } else { 0 }
}
