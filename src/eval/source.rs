//! Where the vectors of an evaluation come from: a model, or files that any program has written.

use crate::encode::Encoder;
use crate::encode::texts::{Empty, Item};
use crate::error::{Error, Message, Result};
use crate::format::vectors::VectorFile;
use std::path::PathBuf;

enum Origin {
    Model(Box<Encoder>),
    /// Read one after the other, as if they were one.
    Files(Vec<VectorFile>),
}

/// Vectors of texts, in the order of the texts: a task asks for all of its texts, once each, in the order that its
/// module states.
pub struct Vectors {
    origin: Origin,
    empty: Empty,
    progress: Box<dyn FnMut(usize, usize)>,
    /// Texts that have been asked for.
    texts: usize,
    /// Texts that a length limit cut.
    pub cut: u64,
}

impl Vectors {
    /// From a model; `progress` is told texts and tokens.
    pub fn model(encoder: Encoder, empty: Empty, progress: impl FnMut(usize, usize) + 'static) -> Vectors {
        let (origin, progress) = (Origin::Model(Box::new(encoder)), Box::new(progress));
        Vectors { origin, empty, progress, texts: 0, cut: 0 }
    }

    /// From files: the rows of the first, then those of the next.
    pub fn files(paths: &[PathBuf], progress: impl FnMut(usize, usize) + 'static) -> Result<Vectors> {
        let files = paths.iter().map(|path| VectorFile::open(path)).collect::<Result<Vec<_>>>()?;
        let Some(first) = files.first() else { return Err(Error::usage("no file of vectors was given")) };
        if let Some(other) = files.iter().find(|f| f.width() != first.width()) {
            let (got, wanted) = (other.width(), first.width());
            let what =
                format!("rows of {got} elements, {wanted} were wanted as in {}", first.path().display());
            return Err(Error::file(other.path(), what));
        }
        let (empty, progress) = (Empty::Zero, Box::new(progress));
        Ok(Vectors { origin: Origin::Files(files), empty, progress, texts: 0, cut: 0 })
    }

    /// The numbers in a vector.
    pub fn width(&self) -> usize {
        match &self.origin {
            Origin::Model(encoder) => encoder.width(),
            Origin::Files(files) => files[0].width(),
        }
    }

    /// The vectors of the next texts, one finite row each; `at(i, what)` makes the error of item `i`.
    pub fn rows(&mut self, items: &[Item], at: impl Fn(usize, Message) -> Error + Sync) -> Result<Vec<f32>> {
        let from = self.texts;
        self.texts += items.len();
        match &mut self.origin {
            Origin::Model(encoder) => {
                let rows = encoder.texts(items, self.empty, at, &mut self.progress)?;
                self.cut += rows.cut;
                Ok(rows.vectors)
            }
            Origin::Files(files) => {
                let vectors = read(files, from, items.len())?;
                let width = files[0].width();
                if let Some(bad) = vectors.iter().position(|v| !v.is_finite()) {
                    let what =
                        format!("its vector, row {} of the file, holds NaN or infinity", from + bad / width);
                    return Err(at(bad / width, what.into()));
                }
                (self.progress)(items.len(), 0);
                Ok(vectors)
            }
        }
    }

    /// [`Vectors::rows`] of the next texts, of which only those at `places` are needed: a model leaves out the others,
    /// files have all.
    pub fn some_rows(
        &mut self,
        items: &[Item],
        places: &[usize],
        at: impl Fn(usize, Message) -> Error + Sync,
    ) -> Result<Vec<f32>> {
        let width = self.width();
        match &self.origin {
            Origin::Model(_) => {
                let some: Vec<Item> = places.iter().map(|&i| items[i]).collect();
                self.rows(&some, |i, what| at(places[i], what))
            }
            Origin::Files(_) => {
                let rows = self.rows(items, at)?;
                Ok(places.iter().flat_map(|&i| &rows[i * width..][..width]).copied().collect())
            }
        }
    }

    /// Says what is wrong where files have more rows than the task has texts: they are of other texts.
    pub fn finish(&self) -> Result<()> {
        let Origin::Files(files) = &self.origin else { return Ok(()) };
        let rows: usize = files.iter().map(VectorFile::rows).sum();
        match rows == self.texts {
            true => Ok(()),
            false => Err(other_number(files, &format!("{}", self.texts))),
        }
    }

    /// The model, where there is one.
    pub fn encoder(&self) -> Option<&Encoder> {
        match &self.origin {
            Origin::Model(encoder) => Some(encoder),
            Origin::Files(_) => None,
        }
    }
}

/// `count` rows of the files, seen as one, from row `from` on.
fn read(files: &[VectorFile], from: usize, count: usize) -> Result<Vec<f32>> {
    let mut vectors = Vec::with_capacity(count * files[0].width());
    let (mut start, end) = (0, from + count);
    for file in files {
        let (first, last) = (from.max(start), end.min(start + file.rows()));
        if first < last {
            vectors.extend(file.read(first - start..last - start));
        }
        start += file.rows();
    }
    if start < end {
        return Err(other_number(files, &format!("{end} or more")));
    }
    Ok(vectors)
}

fn other_number(files: &[VectorFile], wanted: &str) -> Error {
    let rows: usize = files.iter().map(VectorFile::rows).sum();
    let what = format!("{rows} vectors, {wanted} were wanted, one for each text in the order of the texts");
    match files {
        [one] => Error::file(one.path(), what),
        _ => Error::usage(format!("the files of vectors hold {what}")),
    }
}
