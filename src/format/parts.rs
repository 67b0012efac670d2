//! Files of vectors as bytes, to be put one behind the other.

use std::path::{Path, PathBuf};

use super::hf::Checkpoint;
use super::npy;
use super::output::{OutputDtype, RawRows, side_names, side_path};
use crate::device::mapped::Mapped;
use crate::error::{Error, Result};

/// A file of vectors that [`Output`](super::output::Output) wrote, with those beside it.
pub struct PartFile {
    path: PathBuf,
    blocks: bool,
    sides: Vec<&'static str>,
    content: Content,
}

enum Content {
    /// The rows, then the sides.
    Npy(Vec<Mapped>),
    Safetensors(Checkpoint),
}

impl PartFile {
    /// Opens `NAME.npy` or `NAME.safetensors` of numbers of this type; with `blocks`, of texts that have any number of rows.
    pub fn open(path: &Path, dtype: OutputDtype, blocks: bool) -> Result<PartFile> {
        let sides = side_names(dtype, blocks);
        let content = match path.extension().and_then(|ending| ending.to_str()) {
            Some("npy") => {
                let beside = sides.iter().map(|name| side_path(path, name));
                let files = std::iter::once(path.to_path_buf()).chain(beside);
                Content::Npy(files.map(|file| Mapped::open(&file)).collect::<Result<_>>()?)
            }
            Some("safetensors") => Content::Safetensors(Checkpoint::open_file(path)?),
            _ => {
                let what = "parts ending in .npy, .safetensors or .jsonl can be joined";
                return Err(Error::file(path, what));
            }
        };
        Ok(PartFile { path: path.to_path_buf(), blocks, sides, content })
    }

    /// Its rows and sides.
    pub fn raw(&self) -> Result<RawRows<'_>> {
        let main = if self.blocks { "vectors" } else { "embeddings" };
        let (rows, shape) = self.bytes(0, main)?;
        let [_, columns] = shape[..] else {
            return Err(Error::file(
                &self.path,
                format!("rows of shape {shape:?}, [rows, width] was wanted"),
            ));
        };
        let side = |(i, name): (usize, &&'static str)| Ok((*name, self.bytes(i + 1, name)?.0));
        let sides = self.sides.iter().enumerate().map(side).collect::<Result<_>>()?;
        Ok(RawRows { rows, columns, sides })
    }

    /// The numbers of one array, and its extents.
    fn bytes(&self, i: usize, name: &str) -> Result<(&[u8], Vec<usize>)> {
        match &self.content {
            Content::Npy(maps) => {
                let layout = npy::layout(&maps[i]).map_err(|what| Error::file(&self.path, what))?;
                Ok((layout.body, layout.shape))
            }
            Content::Safetensors(file) => match file.get(name) {
                Some(tensor) => Ok((tensor.data, tensor.shape)),
                None => Err(Error::file(&self.path, format!("holds no tensor {name:?}"))),
            },
        }
    }
}
