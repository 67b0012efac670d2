//! Which tensor of a pass was the first to hold NaN or infinity.

use crate::device::Device;
use crate::error::{Error, Result};
use crate::ops::finite::finite_fwd;
use crate::tensor::Tensor;

/// What is looked at in a pass, in this order, and what was found there.
#[derive(Clone, Debug)]
pub struct Watch {
    /// [S, 2] of each tensor: numbers that are NaN or infinite, and the first row that has one
    found: Tensor,
    /// Where in the graph, which tensor, its numbers
    seen: Vec<(String, &'static str, usize)>,
}

impl Watch {
    /// With room in `found` for every tensor of a pass.
    pub fn new(found: Tensor) -> Watch {
        Watch { found, seen: Vec::new() }
    }

    /// The first tensor in which something was found, and how much. The count wraps, so it is the row that tells.
    pub fn verdict(&self) -> Result<()> {
        let found = self.found.read()?;
        let all = self.seen.iter().zip(found.as_chunks().0);
        let first = all.into_iter().find(|(_, [_, row])| *row != f64::from(i32::MAX));
        let Some(((place, name, of), [count, row])) = first else { return Ok(()) };
        let count = *count as i32 as u32;
        let what =
            format!("{place}: {name} has {count} of {of} numbers NaN or infinite, the first in row {row}");
        Err(Error::NotFinite(what))
    }

    /// Nothing is found yet.
    pub fn clear(&mut self) -> Result<()> {
        self.seen.clear();
        self.found.write(&[0, i32::MAX].repeat(self.found.shape()[0]))
    }
}

/// Looks at these tensors of one place, where anybody watches.
pub fn check<'a>(
    device: &Device,
    watch: &mut Option<Watch>,
    place: &str,
    list: impl IntoIterator<Item = (&'static str, &'a Tensor)>,
) -> Result<()> {
    let Some(Watch { found, seen }) = watch else { return Ok(()) };
    for (name, tensor) in list {
        finite_fwd(device, found, tensor, seen.len())?;
        seen.push((place.into(), name, tensor.numel()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::DType;

    /// 2^32 of them are counted as 0, one less as -1.
    #[test]
    fn a_count_that_wraps_is_still_a_finding() {
        let mut watch = Watch { found: Tensor::zeros(DType::I32, &[3, 2]), seen: Vec::new() };
        watch.clear().unwrap();
        watch.seen = ["a", "b", "c"].map(|name| (name.to_string(), "x", 1 << 33)).to_vec();
        watch.verdict().unwrap();
        for (count, says) in [(0, "b: x has 0 of"), (-1, "b: x has 4294967295 of")] {
            watch.found.write(&[0, i32::MAX, count, 7, 5, 1]).unwrap();
            let error = watch.verdict().unwrap_err().to_string();
            assert!(error.contains(says) && error.ends_with("row 7"), "{error}");
        }
    }
}
