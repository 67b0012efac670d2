//! Weights from a file into a tensor: widened, copied or rounded, checked for numbers that are none, by all cores.
//!
//! Of bf16 weights that stay bf16, half of the time is the system's, for pages of the file and of the tensor. Asked for large
//! pages (`madvise`), it took twice as long on a machine whose memory had been in use for a day, and was not kept.

use super::{Data, Raw, Tensor};
use crate::device::{DType, mapped};
use crate::error::{Error, Result};
use half::bf16;
use rayon::prelude::*;
use std::ops::Range;

/// Numbers that a thread fills at a time; a GPU takes so many in one copy.
const BLOCK: usize = 1 << 18;

/// Changes a row of the file, of this number, in f32, before it is rounded.
pub type Edit<'a> = &'a (dyn Fn(usize, &mut [f32]) + Sync);

impl Tensor {
    /// Fills whole rows of a `[M, K]` weight, from row `first` on, or a part of a vector, with all of `raw`. What needs no
    /// arithmetic is copied: bf16 that stay bf16.
    ///
    /// Errors name a number that is NaN or infinity, by its row and column in the file. Panics where the rows leave a tensor in
    /// host memory.
    pub fn fill(&mut self, first: usize, raw: &Raw, edit: Option<Edit>) -> Result<()> {
        let (k, cols) = (self.shape[1..].iter().product::<usize>(), raw.cols());
        let at = first * k..first * k + raw.rows() * cols;
        let block = (BLOCK / cols).max(1);
        let rows = |i: usize| i * block..raw.rows().min((i + 1) * block);
        match &mut self.data {
            Data::F32(v) => v[at].par_chunks_mut(block * cols).enumerate().try_for_each(|(i, to)| {
                let mut each = rows(i).zip(to.chunks_mut(cols));
                each.try_for_each(|(row, to)| raw.edited(row, to, edit))?;
                raw.release(rows(i));
                Ok(())
            }),
            Data::F64(v) => v[at].par_chunks_mut(block * cols).enumerate().try_for_each(|(i, to)| {
                raw.blockwise(rows(i), edit, |values| {
                    to.iter_mut().zip(values).for_each(|(y, &x)| *y = f64::from(x));
                    Ok(())
                })
            }),
            Data::Bf16(v) => v[at].par_chunks_mut(block * cols).enumerate().try_for_each(|(i, to)| {
                if let (DType::Bf16, None) = (raw.dtype, edit) {
                    let bits = raw.pairs(rows(i));
                    to.iter_mut().zip(bits).for_each(|(y, &b)| *y = bf16::from_le_bytes(b));
                    raw.check_bits(rows(i), bits)?;
                    raw.release(rows(i));
                    return Ok(());
                }
                raw.blockwise(rows(i), edit, |values| {
                    to.iter_mut().zip(values).for_each(|(y, &x)| *y = bf16::from_f32(x));
                    Ok(())
                })
            }),
            Data::Panels(panels) => panels.fill(first..first + raw.rows(), &|rows, panel| {
                if let (DType::Bf16, None) = (raw.dtype, edit) {
                    let bits = raw.pairs(rows.clone());
                    panel.copy(bits);
                    raw.check_bits(rows.clone(), bits)?;
                    raw.release(rows);
                    return Ok(());
                }
                raw.blockwise(rows, edit, |values| {
                    panel.round(values);
                    Ok(())
                })
            }),
            Data::Gpu(..) => (0..raw.rows().div_ceil(block)).try_for_each(|i| {
                let from = first + rows(i).start * cols / k;
                raw.blockwise(rows(i), edit, |values| self.put_rows(from, values))
            }),
            Data::I32(_) => Err(self.wrong_type("a type that weights have")),
            Data::Planned(_) => Ok(()),
        }
    }
}

impl Raw<'_> {
    /// Numbers of a row; a vector is one.
    fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1).max(1)
    }

    fn rows(&self) -> usize {
        self.shape.iter().product::<usize>() / self.cols()
    }

    fn bytes(&self, rows: Range<usize>) -> &[u8] {
        let row = self.cols() * self.dtype.size();
        &self.data[rows.start * row..rows.end * row]
    }

    /// The two bytes of each number of rows of bf16.
    fn pairs(&self, rows: Range<usize>) -> &[[u8; 2]] {
        self.bytes(rows).as_chunks().0
    }

    /// A row as it is to be kept, in f32.
    fn edited(&self, row: usize, to: &mut [f32], edit: Option<Edit>) -> Result<()> {
        self.row(row, to);
        // All of them first, which takes many at a time.
        if to.iter().fold(false, |any, v| any | !v.is_finite()) {
            let column = to.iter().position(|v| !v.is_finite()).unwrap_or(0);
            return Err(self.not_finite(row, column, to[column]));
        }
        edit.into_iter().for_each(|edit| edit(row, to));
        Ok(())
    }

    /// Rows as they are to be kept, in f32, all at once.
    fn blockwise(
        &self,
        rows: Range<usize>,
        edit: Option<Edit>,
        take: impl FnOnce(&[f32]) -> Result<()>,
    ) -> Result<()> {
        let mut values = vec![0.0; rows.len() * self.cols()];
        let mut each = rows.clone().zip(values.chunks_mut(self.cols()));
        each.try_for_each(|(row, to)| self.edited(row, to, edit))?;
        self.release(rows);
        take(&values)
    }

    /// Refuses rows of bf16 one of whose exponents is all ones.
    fn check_bits(&self, rows: Range<usize>, bits: &[[u8; 2]]) -> Result<()> {
        let special = |b: &[u8; 2]| u16::from_le_bytes(*b) & 0x7f80 == 0x7f80;
        // All of them first, which takes many at a time.
        if !bits.iter().fold(false, |any, b| any | special(b)) {
            return Ok(());
        }
        let place = bits.iter().position(special).unwrap_or(0);
        let value = bf16::from_le_bytes(bits[place]).to_f32();
        Err(self.not_finite(rows.start + place / self.cols(), place % self.cols(), value))
    }

    fn not_finite(&self, row: usize, column: usize, value: f32) -> Error {
        let what = format!("{} holds {value} at row {row}, column {column}", self.name);
        Error::Shape { op: "weights", what }
    }

    /// Lets the file's pages go that were read: what is kept of them lies elsewhere now.
    fn release(&self, rows: Range<usize>) {
        mapped::release(self.bytes(rows));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    const COLS: usize = 37;

    fn bytes(dtype: DType, values: &[f32]) -> Vec<u8> {
        match dtype {
            DType::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
            DType::Bf16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        }
    }

    fn raw<'a>(dtype: DType, shape: &[usize], data: &'a [u8]) -> Raw<'a> {
        Raw { name: "w", dtype, shape: shape.to_vec(), data }
    }

    /// Two parts of a matrix, whose border lies inside a panel, row by row as `put_rows` puts them.
    #[test]
    fn parts_are_filled_as_row_by_row() {
        let values: Vec<f32> = (0..130 * COLS).map(|i| (i as f32 * 0.7).sin()).collect();
        let (low, high) = values.split_at(53 * COLS);
        let negated = |row: usize, values: &mut [f32]| {
            if row % 3 == 1 {
                values.iter_mut().for_each(|v| *v *= -1.25);
            }
        };
        let make = |kind: usize| match kind {
            0 => Tensor::zeros(DType::F64, &[130, COLS]),
            1 => Tensor::zeros(DType::F32, &[130, COLS]),
            2 => Tensor::zeros(DType::Bf16, &[130, COLS]),
            3 => Tensor::panels(DType::F32, [130, COLS]),
            _ => Tensor::panels(DType::Bf16, [130, COLS]),
        };
        for (kind, dtype) in (0..5).flat_map(|kind| [DType::F32, DType::F16, DType::Bf16].map(|d| (kind, d)))
        {
            for edit in [None, Some(&negated as Edit)] {
                let (mut got, mut wanted) = (make(kind), make(kind));
                for (first, part) in [(0, low), (53, high)] {
                    let data = bytes(dtype, part);
                    let part = raw(dtype, &[part.len() / COLS, COLS], &data);
                    got.fill(first, &part, edit).unwrap();
                    let mut row = [0.0; COLS];
                    for r in 0..part.rows() {
                        part.row(r, &mut row);
                        edit.iter().for_each(|edit| edit(r, &mut row));
                        wanted.put_rows(first + r, &row).unwrap();
                    }
                }
                assert_eq!(format!("{got:?}"), format!("{wanted:?}"), "{kind} {dtype:?}");
            }
        }
        let data = bytes(DType::Bf16, &values[..5]);
        let mut vector = Tensor::zeros(DType::F32, &[9]);
        vector.fill(4, &raw(DType::Bf16, &[5], &data), None).unwrap();
        let wanted: Vec<f32> = values[..5].iter().map(|v| bf16::from_f32(*v).to_f32()).collect();
        assert_eq!(vector.host::<f32>().unwrap()[4..], wanted);
    }

    #[test]
    fn what_is_no_number_is_named() {
        for (value, dtype) in
            [(f32::NAN, DType::Bf16), (f32::NEG_INFINITY, DType::Bf16), (f32::INFINITY, DType::F32)]
        {
            let mut values = vec![1.0; 60 * COLS];
            values[51 * COLS + 6] = value;
            let data = bytes(dtype, &values);
            for mut tensor in [
                Tensor::zeros(DType::F32, &[60, COLS]),
                Tensor::zeros(DType::Bf16, &[60, COLS]),
                Tensor::panels(DType::F32, [60, COLS]),
                Tensor::panels(DType::Bf16, [60, COLS]),
            ] {
                let said = tensor.fill(0, &raw(dtype, &[60, COLS], &data), None).unwrap_err().to_string();
                assert!(said.contains("at row 51, column 6") && said.contains(&value.to_string()), "{said}");
            }
        }
    }

    /// A map reads the same after its pages were let go, and other memory is left alone.
    #[test]
    fn pages_let_go_come_again() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(file.path(), &bytes).unwrap();
        let map = mapped::Mapped::open(file.path()).unwrap();
        [&map[..], &map[5000..90_000], &bytes].into_iter().for_each(mapped::release);
        assert!(map[..] == bytes && bytes[777] == (777 % 251) as u8);
    }
}
