//! NumPy's `.npy` files: the header that is written, and arrays read back.

use std::path::Path;

use half::f16;

use crate::{
    device::mapped::Mapped,
    error::{Error, Result},
};

/// Every header we write has this size, so that the shape can be put in when it is known.
pub const HEADER_BYTES: usize = 128;
const MAGIC: &[u8] = b"\x93NUMPY";

/// A version 1.0 header of [`HEADER_BYTES`] bytes for a C-order array.
pub fn header(descr: &str, shape: &[u64]) -> Vec<u8> {
    let mut extents: String = shape.iter().map(|n| format!("{n}, ")).collect();
    if shape.len() > 1 {
        extents.truncate(extents.len() - 2); // only a tuple of one needs its comma
    }
    let dict = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}), }}", extents.trim_end());
    let rest = HEADER_BYTES - MAGIC.len() - 4;
    let mut bytes = MAGIC.to_vec();
    bytes.extend([1, 0]);
    bytes.extend((rest as u16).to_le_bytes());
    bytes.extend(format!("{dict:<0$}\n", rest - 1).as_bytes());
    debug_assert_eq!(bytes.len(), HEADER_BYTES);
    bytes
}

/// The elements of an array.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// `<f4`
    F32(Vec<f32>),
    /// `<f2`
    F16(Vec<f16>),
    /// `|i1`
    I8(Vec<i8>),
    /// `<i4`
    I32(Vec<i32>),
    /// `<i8`
    I64(Vec<i64>),
}

/// An array in C order.
#[derive(Clone, Debug, PartialEq)]
pub struct Npy {
    /// The extents, outermost first; empty for a single number.
    pub shape: Vec<usize>,
    /// The elements.
    pub data: Data,
}

impl Npy {
    /// The elements as `f32`, rounded where they are wider.
    pub fn to_f32(&self) -> Vec<f32> {
        match &self.data {
            Data::F32(v) => v.clone(),
            Data::F16(v) => v.iter().map(|x| x.to_f32()).collect(),
            Data::I8(v) => v.iter().map(|x| f32::from(*x)).collect(),
            Data::I32(v) => v.iter().map(|x| *x as f32).collect(),
            Data::I64(v) => v.iter().map(|x| *x as f32).collect(),
        }
    }
}

/// Reads an array of f32, f16, i8, i32 or i64.
pub fn read(path: &Path) -> Result<Npy> {
    let map = Mapped::open(path)?;
    parse(&map).map_err(|what| Error::file(path, what))
}

/// What the header says, and the elements' bytes behind it.
pub(super) struct Layout<'a> {
    /// The element type, in NumPy's letters.
    pub(super) descr: &'a str,
    /// The extents, outermost first.
    pub(super) shape: Vec<usize>,
    /// The elements, in C order; their number is not yet checked.
    pub(super) body: &'a [u8],
}

/// Reads the header of a `.npy` file; the error is one line.
pub(super) fn layout(bytes: &[u8]) -> std::result::Result<Layout<'_>, String> {
    let (header, body) =
        split(bytes).ok_or("not a .npy file, or cut short in its header; save it with numpy.save")?;
    let header =
        std::str::from_utf8(header).map_err(|_| "the .npy header is not text; save it with numpy.save")?;
    let field = |key: &str| {
        let at = header.split_once(&format!("'{key}':"));
        at.map(|(_, rest)| rest.trim_start())
            .ok_or(format!("the .npy header has no '{key}'; save it with numpy.save"))
    };
    let shape = shape(field("shape")?).ok_or("the .npy header's shape is no tuple of whole numbers")?;
    if !field("fortran_order")?.starts_with("False") && shape.len() > 1 {
        return Err(
            "the array is in Fortran order, C order was wanted; use numpy.ascontiguousarray".to_string()
        );
    }
    let descr = field("descr")?.strip_prefix('\'').and_then(|d| d.split_once('\''));
    let descr = descr.ok_or("the .npy header's descr is no string, a plain array was wanted")?.0;
    Ok(Layout { descr, shape, body })
}

/// Reads an array from the bytes of a `.npy` file; the error is one line.
pub fn parse(bytes: &[u8]) -> std::result::Result<Npy, String> {
    let Layout { descr, shape, body } = layout(bytes)?;
    let count =
        shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d)).ok_or("the .npy shape is too large")?;
    let data = match descr {
        "<f4" => Data::F32(elements(body, count, f32::from_le_bytes)?),
        "<f2" => Data::F16(elements(body, count, f16::from_le_bytes)?),
        "|i1" => Data::I8(elements(body, count, i8::from_le_bytes)?),
        "<i4" => Data::I32(elements(body, count, i32::from_le_bytes)?),
        "<i8" => Data::I64(elements(body, count, i64::from_le_bytes)?),
        other => {
            return Err(format!("elements of type {other:?}, one of <f4, <f2, |i1, <i4, <i8 was wanted"));
        }
    };
    Ok(Npy { shape, data })
}

/// The header's text and what follows it.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (version, rest) = bytes.strip_prefix(MAGIC)?.split_first_chunk::<2>()?;
    let (length, rest) = match version {
        [1, _] => {
            let (length, rest) = rest.split_first_chunk()?;
            (usize::from(u16::from_le_bytes(*length)), rest)
        }
        [2 | 3, _] => {
            let (length, rest) = rest.split_first_chunk()?;
            (usize::try_from(u32::from_le_bytes(*length)).ok()?, rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}

fn shape(text: &str) -> Option<Vec<usize>> {
    let inner = text.strip_prefix('(')?.split_once(')')?.0.trim();
    let inner = inner.strip_suffix(',').unwrap_or(inner);
    if inner.is_empty() {
        return Some(Vec::new());
    }
    inner.split(',').map(|n| n.trim().parse().ok()).collect()
}

fn elements<const W: usize, T>(
    body: &[u8],
    count: usize,
    make: fn([u8; W]) -> T,
) -> std::result::Result<Vec<T>, String> {
    // Compared before anything is allocated: the header is not to be trusted with the size.
    if count.checked_mul(W) != Some(body.len()) {
        let got = body.len();
        return Err(format!(
            "{got} bytes of data where {count} elements of {W} bytes were wanted; is it cut short?"
        ));
    }
    Ok(body.as_chunks::<W>().0.iter().map(|chunk| make(*chunk)).collect())
}
