//! Tensors: a shape, an element type, and memory on a device; and the shape contracts of ops.

use crate::device::cpu::Real;
use crate::device::gpu::{Gpu, Memory};
use crate::device::{DType, panels::Panels};
use crate::error::{Error, Result};
use half::{bf16, f16};
use rayon::prelude::*;
use std::borrow::Cow;

mod arguments;
mod fill;

pub use fill::Edit;

/// A dense row-major array. The first dimension may be set below what was allocated.
#[derive(Clone, Debug)]
pub struct Tensor {
    shape: Vec<usize>,
    data: Data,
}

#[derive(Clone, Debug)]
enum Data {
    F64(Vec<f64>),
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    I32(Vec<i32>),
    Panels(Panels),
    Gpu(Memory, DType),
    /// A planning arena's tensor: it has a size and no memory.
    Planned(DType),
}

/// Element types that live in host memory.
pub trait Element: bytemuck::Pod {
    /// How tensors name it.
    const DTYPE: DType;
    /// The whole allocation as a slice, if the tensor holds this type.
    fn slice(t: &Tensor) -> Option<&[Self]>;
    /// Likewise, mutable.
    fn slice_mut(t: &mut Tensor) -> Option<&mut [Self]>;
}

macro_rules! element {
    ($t:ty, $variant:ident) => {
        impl Element for $t {
            const DTYPE: DType = DType::$variant;
            fn slice(t: &Tensor) -> Option<&[$t]> {
                if let Data::$variant(v) = &t.data { Some(v) } else { None }
            }
            fn slice_mut(t: &mut Tensor) -> Option<&mut [$t]> {
                if let Data::$variant(v) = &mut t.data { Some(v) } else { None }
            }
        }
    };
}
element!(f64, F64);
element!(f32, F32);
element!(bf16, Bf16);
element!(i32, I32);

/// Calls a function generic over [`crate::device::cpu::Real`] with the type that a device computes in.
macro_rules! with_real {
    ($real:expr, $t:ident => $body:expr) => {
        match $real {
            $crate::device::DType::F64 => {
                type $t = f64;
                $body
            }
            _ => {
                type $t = f32;
                $body
            }
        }
    };
}
pub(crate) use with_real;

impl Tensor {
    /// Zeros of `dtype` (`F16` is a file format only and becomes `F32`).
    pub fn zeros(dtype: DType, shape: &[usize]) -> Tensor {
        let n = shape.iter().product();
        let data = match dtype {
            DType::F64 => Data::F64(vec![0.0; n]),
            DType::F32 | DType::F16 => Data::F32(vec![0.0; n]),
            DType::Bf16 => Data::Bf16(bytemuck::zeroed_vec(n)),
            DType::I32 => Data::I32(vec![0; n]),
        };
        Tensor { shape: shape.to_vec(), data }
    }

    /// A weight `[M, K]` of `Bf16` or else `F32` in the layout of the CPU's matrix products.
    pub fn panels(dtype: DType, shape: [usize; 2]) -> Tensor {
        let panels = Panels::zeros(dtype == DType::Bf16, shape[0], shape[1]);
        Tensor { shape: shape.to_vec(), data: Data::Panels(panels) }
    }

    /// A tensor of this shape that has no memory: what a planning arena hands out.
    pub fn planned(dtype: DType, shape: &[usize]) -> Tensor {
        Tensor { shape: shape.to_vec(), data: Data::Planned(dtype) }
    }

    /// A host tensor with these values at `dtype` `F32` or `F64`.
    pub fn from_f64(dtype: DType, shape: &[usize], values: impl IntoIterator<Item = f64>) -> Tensor {
        let data = match dtype {
            DType::F64 => Data::F64(values.into_iter().collect()),
            _ => Data::F32(values.into_iter().map(|v| v as f32).collect()),
        };
        let t = Tensor { shape: shape.to_vec(), data };
        assert_eq!(t.capacity(), t.numel(), "from_f64: the values do not fill the shape");
        t
    }

    /// An `i32` tensor of one dimension.
    pub fn from_i32(values: &[i32]) -> Tensor {
        Tensor { shape: vec![values.len()], data: Data::I32(values.to_vec()) }
    }

    /// Dimensions, slowest first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        match &self.data {
            Data::F64(_) => DType::F64,
            Data::F32(_) | Data::Panels(Panels::F32(_)) => DType::F32,
            Data::Bf16(_) | Data::Panels(Panels::Bf16(_)) => DType::Bf16,
            Data::I32(_) => DType::I32,
            Data::Gpu(_, d) | Data::Planned(d) => *d,
        }
    }

    fn capacity(&self) -> usize {
        match &self.data {
            Data::F64(v) => v.len(),
            Data::F32(v) => v.len(),
            Data::Bf16(v) => v.len(),
            Data::I32(v) => v.len(),
            Data::Gpu(memory, dtype) => memory.bytes() / dtype.size(),
            Data::Panels(_) | Data::Planned(_) => self.numel(),
        }
    }

    /// Sets the first dimension, up to what was allocated. Content beyond the old size is stale.
    pub fn set_rows(&mut self, rows: usize) -> Result<()> {
        let row: usize = self.shape[1..].iter().product();
        if rows * row > self.capacity() {
            let what =
                format!("{rows} rows of {row} do not fit the {} elements that were planned", self.capacity());
            return Err(Error::Shape { op: "set_rows", what });
        }
        self.shape[0] = rows;
        Ok(())
    }

    /// The elements, if they are of type `T`.
    pub fn host<T: Element>(&self) -> Result<&[T]> {
        let n = self.numel();
        match T::slice(self) {
            Some(v) => Ok(&v[..n]),
            None => Err(self.wrong_type(std::any::type_name::<T>())),
        }
    }

    /// The elements, mutable, if they are of type `T`.
    pub fn host_mut<T: Element>(&mut self) -> Result<&mut [T]> {
        let n = self.numel();
        if T::slice(self).is_none() {
            return Err(self.wrong_type(std::any::type_name::<T>()));
        }
        Ok(T::slice_mut(self).map_or(&mut [], |v| &mut v[..n]))
    }

    /// Fills the rows in use with `values` of the tensor's own type: on a GPU, one copy.
    pub fn write<T: Element>(&mut self, values: &[T]) -> Result<()> {
        if values.len() != self.numel() {
            return refuse("write", format!("{} values for a tensor of {:?}", values.len(), self.shape));
        }
        match &mut self.data {
            Data::Gpu(memory, dtype) if *dtype == T::DTYPE => memory.write(0, bytemuck::cast_slice(values)),
            _ => self.host_mut().map(|own| own.copy_from_slice(values)),
        }
    }

    /// Copies `rows` rows of `from`, from row `at` on, to this tensor's row `to`. Both are float tensors of one type and width,
    /// and on one device.
    pub fn copy_rows(&mut self, to: usize, from: &Tensor, at: usize, rows: usize) -> Result<()> {
        let k: usize = self.shape[1..].iter().product();
        let within =
            self.shape[1..] == from.shape[1..] && to + rows <= self.shape[0] && at + rows <= from.shape[0];
        if !within || self.dtype() != from.dtype() {
            let what = format!("{rows} rows from {at} of {:?} to {to} of {:?}", from.shape, self.shape);
            return refuse("copy_rows", what);
        }
        match (&mut self.data, &from.data) {
            (Data::F64(y), Data::F64(x)) => y[to * k..][..rows * k].copy_from_slice(&x[at * k..][..rows * k]),
            (Data::F32(y), Data::F32(x)) => y[to * k..][..rows * k].copy_from_slice(&x[at * k..][..rows * k]),
            (Data::Gpu(y, dtype), Data::Gpu(x, _)) => {
                let row = k * dtype.size();
                y.copy(to * row, x, at * row, rows * row)?;
            }
            _ => return Err(self.wrong_type("floats on the device of those to copy")),
        }
        Ok(())
    }

    /// Zeros again, up to the rows in use; on a GPU, all of it.
    pub fn clear(&mut self) -> Result<()> {
        if let Data::Gpu(memory, _) = &mut self.data {
            return memory.fill(0);
        }
        match self.dtype() {
            DType::F64 => self.host_mut::<f64>()?.fill(0.0),
            DType::F32 => self.host_mut::<f32>()?.fill(0.0),
            DType::I32 => self.host_mut::<i32>()?.fill(0),
            _ => return Err(self.wrong_type("a type that gradients have")),
        }
        Ok(())
    }

    fn wrong_type(&self, wanted: &str) -> Error {
        Error::Shape { op: "tensor", what: format!("holds {:?}, expected {wanted}", self.dtype()) }
    }

    /// The packed panels, if the tensor is a packed weight.
    pub fn as_panels(&self) -> Option<&Panels> {
        if let Data::Panels(p) = &self.data { Some(p) } else { None }
    }

    /// Every element widened to `f64` (packed panels have no such view and give nothing).
    pub fn to_f64(&self) -> Vec<f64> {
        match &self.data {
            Data::F64(v) => v[..self.numel()].to_vec(),
            Data::F32(v) => v[..self.numel()].iter().map(|&x| x as f64).collect(),
            Data::Bf16(v) => v[..self.numel()].iter().map(|x| x.to_f64()).collect(),
            Data::I32(v) => v[..self.numel()].iter().map(|&x| x as f64).collect(),
            Data::Gpu(..) => self.read().unwrap_or_default(),
            Data::Panels(_) | Data::Planned(_) => Vec::new(),
        }
    }

    /// [`Tensor::to_f64`], with the error of a GPU's work so far, which the copy waits for.
    pub fn read(&self) -> Result<Vec<f64>> {
        match &self.data {
            Data::Gpu(..) => Ok(self.to_host()?.to_f64()),
            _ => Ok(self.to_f64()),
        }
    }

    /// Every element at `f32`: where they lie, or a copy. Errors as in [`Tensor::read`].
    pub fn read_f32(&self) -> Result<Cow<'_, [f32]>> {
        match (&self.data, self.dtype()) {
            (Data::F32(v), _) => Ok(Cow::Borrowed(&v[..self.numel()])),
            (Data::Gpu(..), DType::F32) => Ok(Cow::Owned(self.to_host()?.host()?.to_vec())),
            _ => Ok(Cow::Owned(self.read()?.into_iter().map(|x| x as f32).collect())),
        }
    }

    /// Rows `first .. first + rows` of a `[M, K]` weight at `T`: where they lie, or out of panels or widened from bf16 into `room`.
    pub fn weight_rows<'a, T: Real + Element>(
        &'a self,
        first: usize,
        rows: usize,
        room: &'a mut Vec<T>,
    ) -> Result<&'a [T]> {
        let k: usize = self.shape[1..].iter().product();
        if self.dtype() != DType::Bf16 && self.as_panels().is_none() {
            return Ok(&self.host()?[first * k..][..rows * k]);
        }
        room.resize(rows * k, T::ZERO);
        let wide = |x: bf16| T::of(x.to_f64());
        match &self.data {
            Data::Panels(p) => room.par_chunks_mut(k).enumerate().for_each(|(r, row)| {
                p.row(first + r, |at, x| row[at] = T::of(x.into()));
            }),
            _ => room.par_chunks_mut(k).zip(self.host::<bf16>()?[first * k..].par_chunks(k)).for_each(
                |(row, w)| {
                    row.iter_mut().zip(w).for_each(|(y, &x)| *y = wide(x));
                },
            ),
        }
        Ok(room)
    }

    /// Rounds `values` into whole rows of a `[M, K]` weight, from row `first` on, or into a part of a `[K]` vector.
    ///
    /// Panics where they leave a tensor in host memory.
    pub fn put_rows(&mut self, first: usize, values: &[f32]) -> Result<()> {
        let k: usize = self.shape[1..].iter().product();
        let at = first * k..first * k + values.len();
        match &mut self.data {
            Data::F64(v) => v[at].iter_mut().zip(values).for_each(|(y, &x)| *y = x as f64),
            Data::F32(v) => v[at].copy_from_slice(values),
            Data::Bf16(v) => v[at].iter_mut().zip(values).for_each(|(y, &x)| *y = bf16::from_f32(x)),
            Data::Panels(p) => {
                values.chunks(k).enumerate().for_each(|(r, row)| p.set_row(first + r, row));
            }
            Data::Gpu(memory, DType::F32) => memory.write(4 * at.start, bytemuck::cast_slice(values))?,
            Data::Gpu(memory, DType::Bf16) => {
                let rounded: Vec<bf16> = values.iter().map(|&x| bf16::from_f32(x)).collect();
                memory.write(2 * at.start, bytemuck::cast_slice(&rounded))?;
            }
            Data::I32(_) | Data::Gpu(..) => return Err(self.wrong_type("a type that weights have")),
            Data::Planned(_) => {}
        }
        Ok(())
    }

    /// Zeros on a GPU.
    pub fn zeros_on(gpu: &Gpu, dtype: DType, shape: &[usize]) -> Result<Tensor> {
        let memory = gpu.memory(shape.iter().product::<usize>() * dtype.size())?;
        Ok(Tensor { shape: shape.to_vec(), data: Data::Gpu(memory, dtype) })
    }

    /// Scratch tensors that lie in the GPU's one workspace. Their content is undefined, and they are the op's until it
    /// returns: it must drop them before the next op takes its own.
    ///
    /// Errors where [`Gpu::workspace`] does; [`workspace_bytes`] says how much of it they take.
    pub fn workspace<const N: usize>(gpu: &Gpu, parts: [(DType, &[usize]); N]) -> Result<[Tensor; N]> {
        let mut memory = gpu.workspace(places(&parts))?.into_iter();
        Ok(parts.map(|(dtype, shape)| match memory.next() {
            Some(memory) => Tensor { shape: shape.to_vec(), data: Data::Gpu(memory, dtype) },
            None => unreachable!("as many parts as places"),
        }))
    }

    /// A copy on a GPU, rounded to `dtype` (`Bf16`, `F32`, `F64` or `I32`).
    pub fn to_gpu(&self, gpu: &Gpu, dtype: DType) -> Result<Tensor> {
        Tensor::repeated_on(gpu, dtype, &self.shape, &self.read()?)
    }

    /// These values over and over, on a GPU, rounded to `dtype` as in [`Tensor::to_gpu`].
    pub fn repeated_on(gpu: &Gpu, dtype: DType, shape: &[usize], values: &[f64]) -> Result<Tensor> {
        let bytes: Vec<u8> = match dtype {
            DType::F64 => bytemuck::cast_slice(values).to_vec(),
            DType::F32 => values.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect(),
            DType::I32 => values.iter().flat_map(|&x| (x as i32).to_le_bytes()).collect(),
            DType::Bf16 => values.iter().flat_map(|&x| bf16::from_f64(x).to_le_bytes()).collect(),
            DType::F16 => return refuse("to_gpu", "a GPU computes in Bf16, F32 or F64".into()),
        };
        let size = shape.iter().product::<usize>() * dtype.size();
        let mut memory = gpu.memory(size)?;
        for at in (0..size).step_by(bytes.len().max(1)) {
            memory.write(at, &bytes[..bytes.len().min(size - at)])?;
        }
        Ok(Tensor { shape: shape.to_vec(), data: Data::Gpu(memory, dtype) })
    }

    /// A copy in host memory, at the same type.
    pub fn to_host(&self) -> Result<Tensor> {
        let Data::Gpu(memory, dtype) = &self.data else { return Ok(self.clone()) };
        let n = self.numel();
        let mut bytes = vec![0; n * dtype.size()];
        memory.read(0, &mut bytes)?;
        let mut t = Tensor::zeros(*dtype, &self.shape);
        match &mut t.data {
            Data::F64(v) => bytemuck::cast_slice_mut(v).copy_from_slice(&bytes),
            Data::F32(v) => bytemuck::cast_slice_mut(v).copy_from_slice(&bytes),
            Data::Bf16(v) => bytemuck::cast_slice_mut(v).copy_from_slice(&bytes),
            Data::I32(v) => bytemuck::cast_slice_mut(v).copy_from_slice(&bytes),
            Data::Panels(_) | Data::Gpu(..) | Data::Planned(_) => {}
        }
        Ok(t)
    }
}

/// Where parts of the workspace lie, `(from, bytes)`: at multiples of 256, with as much between them that nobody uses.
fn places(parts: &[(DType, &[usize])]) -> Vec<(usize, usize)> {
    let mut from = 0;
    let place = |(dtype, shape): &(DType, &[usize])| {
        let bytes = shape.iter().product::<usize>() * dtype.size();
        let place = (from, bytes);
        from = (from + bytes).next_multiple_of(256) + 256;
        place
    };
    parts.iter().map(place).collect()
}

/// Bytes of workspace that [`Tensor::workspace`] takes for these parts.
pub fn workspace_bytes(parts: &[(DType, &[usize])]) -> usize {
    places(parts).last().map_or(0, |(from, bytes)| from + bytes)
}

/// A tensor as a weight file holds it: little-endian bytes, any alignment.
#[derive(Clone, Debug)]
pub struct Raw<'a> {
    /// The name in the file, for messages.
    pub name: &'a str,
    /// `F32`, `F16` or `Bf16`.
    pub dtype: DType,
    /// Dimensions, slowest first.
    pub shape: Vec<usize>,
    /// `numel * dtype.size()` bytes.
    pub data: &'a [u8],
}

impl Raw<'_> {
    /// Widens row `row` (all of a vector, `row` 0) into `out`, whose length is the row's.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        let bytes = out.len() * self.dtype.size();
        let data = &self.data[row * bytes..][..bytes];
        match self.dtype {
            DType::Bf16 => {
                let pairs = data.as_chunks::<2>().0;
                out.iter_mut().zip(pairs).for_each(|(y, &b)| *y = bf16::from_le_bytes(b).to_f32());
            }
            DType::F16 => {
                let pairs = data.as_chunks::<2>().0;
                out.iter_mut().zip(pairs).for_each(|(y, &b)| *y = f16::from_le_bytes(b).to_f32());
            }
            _ => {
                let quads = data.as_chunks::<4>().0;
                out.iter_mut().zip(quads).for_each(|(y, &b)| *y = f32::from_le_bytes(b));
            }
        }
    }
}

/// Checks operands against a contract written in letters, and returns the letters' sizes.
///
/// `dims("rmsnorm_fwd", ["N", "C"], &[("x", x, "N C"), ("w", w, "C")])` gives `[n, c]`. A letter takes
/// its size from the first operand that has it; a disagreement names operand, shape and origin.
pub fn dims<const L: usize>(
    op: &'static str,
    letters: [&str; L],
    operands: &[(&str, &Tensor, &str)],
) -> Result<[usize; L]> {
    let mut sizes: [Option<(usize, &str)>; L] = [None; L];
    for &(name, tensor, spec) in operands {
        let fail = |why: String| Error::Shape {
            op,
            what: format!("{name} is {:?}, expected [{spec}]{why}", tensor.shape),
        };
        if spec.split(' ').count() != tensor.shape.len() {
            return Err(fail(String::new()));
        }
        for (word, &got) in spec.split(' ').zip(&tensor.shape) {
            match letters.iter().position(|l| *l == word) {
                Some(l) => match sizes[l] {
                    None => sizes[l] = Some((got, name)),
                    Some((want, _)) if want == got => {}
                    Some((want, from)) => return Err(fail(format!(" with {word} = {want} (from {from})"))),
                },
                None if word.parse() == Ok(got) => {}
                None => return Err(fail(String::new())),
            }
        }
    }
    Ok(sizes.map(|s| s.map_or(0, |(n, _)| n)))
}

/// A size as kernels take it.
pub fn int(op: &'static str, n: usize) -> Result<i32> {
    i32::try_from(n).or_else(|_| limited(op, format!("a size of {n}"), "less than 2^31"))
}

/// Refuses a row that kernels cannot walk in 16-byte steps.
pub fn whole_vectors(op: &'static str, letter: &str, size: usize, of: usize) -> Result<()> {
    match size.is_multiple_of(of) {
        true => Ok(()),
        false => limited(op, format!("{letter} = {size}"), format!("multiples of {of}")),
    }
}

/// An op's refusal of what the CPU would do, in the words of [`Error::Limit`].
pub fn limited<T>(op: &'static str, got: String, takes: impl Into<String>) -> Result<T> {
    Err(Error::Limit { op, got, takes: takes.into() })
}

/// An op's own refusal, in the words of [`Error::Shape`].
pub fn refuse<T>(op: &'static str, what: String) -> Result<T> {
    Err(Error::Shape { op, what })
}
