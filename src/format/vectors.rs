//! Vectors that any program has written, read back window by window: `.npy` or `.safetensors`, one row a text.

use super::hf::Checkpoint;
use super::npy;
use crate::device::mapped::Mapped;
use crate::error::{Error, Result};
use half::{bf16, f16};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// How an element lies in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Element {
    F64,
    F32,
    F16,
    Bf16,
    I8,
}

impl Element {
    /// By NumPy's name, or by that of safetensors.
    fn named(name: &str) -> Option<Element> {
        Some(match name {
            "<f8" | "F64" => Element::F64,
            "<f4" | "F32" => Element::F32,
            "<f2" | "F16" => Element::F16,
            "BF16" => Element::Bf16,
            "|i1" | "I8" => Element::I8,
            _ => return None,
        })
    }

    fn bytes(self) -> usize {
        match self {
            Element::F64 => 8,
            Element::F32 => 4,
            Element::F16 | Element::Bf16 => 2,
            Element::I8 => 1,
        }
    }

    fn floats(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Element::F64 => bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
            Element::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Element::F16 => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
            Element::Bf16 => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
            Element::I8 => bytes.iter().map(|b| f32::from(i8::from_le_bytes([*b]))).collect(),
        }
    }
}

/// Where the elements are.
enum Place {
    Npy { map: Mapped, start: usize },
    Tensor { checkpoint: Checkpoint, name: String },
}

/// A matrix in a file, mapped, so that no more of it is held than is asked for.
pub struct VectorFile {
    path: PathBuf,
    place: Place,
    element: Element,
    shape: [usize; 2],
    /// Of i8 rows, where the file says.
    scales: Option<Vec<f32>>,
}

impl VectorFile {
    /// Opens `NAME.npy` or `NAME.safetensors` (its tensor `embeddings`, or its only matrix).
    pub fn open(path: &Path) -> Result<VectorFile> {
        let ending = path.extension().map_or(String::new(), |e| e.to_string_lossy().to_ascii_lowercase());
        match ending.as_str() {
            "npy" => VectorFile::npy(path),
            "safetensors" => VectorFile::safetensors(path),
            _ => Err(Error::file(path, "a name ending in .npy or .safetensors was wanted for vectors")),
        }
    }

    fn npy(path: &Path) -> Result<VectorFile> {
        let map = Mapped::open(path)?;
        let layout = npy::layout(&map).map_err(|what| Error::file(path, what))?;
        let (descr, shape, start) = (layout.descr.to_string(), layout.shape, map.len() - layout.body.len());
        let place = Place::Npy { map, start };
        let mut file = VectorFile::new(path, place, &descr, &shape)?;
        let scales = path.with_extension("scale.npy");
        if file.element == Element::I8 && scales.is_file() {
            file.scales = Some(npy::read(&scales)?.to_f32());
        }
        file.checked()
    }

    fn safetensors(path: &Path) -> Result<VectorFile> {
        let checkpoint = Checkpoint::open_file(path)?;
        let is_matrix = |name: &&str| checkpoint.get(name).is_some_and(|t| t.shape.len() == 2);
        let matrices: Vec<&str> = checkpoint.names().filter(is_matrix).collect();
        let name = match matrices.as_slice() {
            [only] => *only,
            list => list.iter().find(|n| **n == "embeddings").copied().ok_or_else(|| {
                let names = checkpoint.names().collect::<Vec<_>>().join(", ");
                let wanted = "a tensor \"embeddings\" [texts, width] or one matrix alone was wanted";
                Error::file(path, format!("holds the tensors {names}; {wanted}"))
            })?,
        };
        let tensor = checkpoint.get(name).expect("it was just listed");
        let (dtype, shape, name) = (format!("{:?}", tensor.dtype), tensor.shape, name.to_string());
        let scale = checkpoint.get("scale").filter(|s| s.dtype == safetensors::Dtype::F32);
        let scales = scale.map(|s| Element::F32.floats(s.data));
        let mut file = VectorFile::new(path, Place::Tensor { checkpoint, name }, &dtype, &shape)?;
        file.scales = scales.filter(|_| file.element == Element::I8);
        file.checked()
    }

    fn new(path: &Path, place: Place, element: &str, shape: &[usize]) -> Result<VectorFile> {
        let wrong = |what: String| Err(Error::file(path, what));
        let &[rows, width] = shape else {
            return wrong(format!("an array of shape {shape:?}, [texts, width] was wanted"));
        };
        if width == 0 {
            return wrong("rows of 0 elements, at least 1 was wanted".into());
        }
        let Some(kind) = Element::named(element) else {
            return wrong(format!("elements of type {element:?}, f64, f32, f16, bf16 or i8 were wanted"));
        };
        Ok(VectorFile { path: path.to_path_buf(), place, element: kind, shape: [rows, width], scales: None })
    }

    /// The sizes that the header promises are in the file.
    fn checked(self) -> Result<VectorFile> {
        let [rows, width] = self.shape;
        let wanted = rows.checked_mul(width).and_then(|n| n.checked_mul(self.element.bytes()));
        let got = self.bytes().len();
        if wanted != Some(got) {
            let what = format!("{got} bytes of data for {rows} rows of {width}; is it cut short?");
            return Err(Error::file(&self.path, what));
        }
        if let Some(scales) = self.scales.as_ref().filter(|s| s.len() != rows) {
            return Err(Error::file(&self.path, format!("{} scales for {rows} rows", scales.len())));
        }
        Ok(self)
    }

    fn bytes(&self) -> &[u8] {
        match &self.place {
            Place::Npy { map, start } => &map.as_bytes()[*start..],
            Place::Tensor { checkpoint, name } => checkpoint.get(name).map_or(&[], |t| t.data),
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many vectors there are.
    pub fn rows(&self) -> usize {
        self.shape[0]
    }

    /// The numbers in each.
    pub fn width(&self) -> usize {
        self.shape[1]
    }

    /// All rows as they lie in the file, where they are f32.
    pub fn floats(&self) -> Option<&[f32]> {
        let plain = self.element == Element::F32 && cfg!(target_endian = "little");
        plain.then(|| bytemuck::try_cast_slice(self.bytes()).ok()).flatten()
    }

    /// Some of the rows, one after the other.
    pub fn read(&self, rows: Range<usize>) -> Vec<f32> {
        let row = self.shape[1] * self.element.bytes();
        let mut floats = self.element.floats(&self.bytes()[rows.start * row..rows.end * row]);
        if let Some(scales) = &self.scales {
            for (row, scale) in floats.chunks_exact_mut(self.shape[1]).zip(&scales[rows]) {
                row.iter_mut().for_each(|v| *v *= scale);
            }
        }
        floats
    }
}
