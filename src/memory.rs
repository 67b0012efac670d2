//! The arena: every struct of tensors is built by one constructor, first to be counted, then for real.

use crate::device::{DType, Device, panels::Panels};
use crate::error::{Error, Message, Result, message};
use crate::tensor::Tensor;

/// Hands out tensors and counts their bytes by group.
///
/// A planning arena counts and hands out tensors without memory, so that what is planned and what is
/// allocated cannot disagree. Where a device has no room after all, the tensors from there on have no memory either, and
/// [`Arena::finish`] gives the error.
pub struct Arena {
    /// Where the tensors live.
    pub device: Device,
    planning: bool,
    group: &'static str,
    used: Vec<(&'static str, u64)>,
    failed: Option<Error>,
}

/// The group of the memory that all ops of a GPU share.
const WORKSPACE: &str = "workspace";

impl Arena {
    /// Counts only.
    pub fn planning(device: &Device) -> Arena {
        Arena { device: device.clone(), planning: true, group: "other", used: Vec::new(), failed: None }
    }

    /// Allocates.
    pub fn new(device: &Device) -> Arena {
        Arena { planning: false, ..Arena::planning(device) }
    }

    /// What follows is counted under `name`.
    pub fn group(&mut self, name: &'static str) {
        self.group = name;
    }

    /// Whether its tensors have memory to fill.
    pub fn allocates(&self) -> bool {
        !self.planning
    }

    fn count(&mut self, bytes: usize) {
        match self.used.iter_mut().find(|(g, _)| *g == self.group) {
            Some((_, used)) => *used += bytes as u64,
            None => self.used.push((self.group, bytes as u64)),
        }
    }

    /// A tensor of zeros.
    pub fn tensor(&mut self, dtype: DType, shape: &[usize]) -> Tensor {
        self.count(shape.iter().product::<usize>() * dtype.size());
        let made = match &self.device {
            _ if self.planning || self.failed.is_some() => Ok(Tensor::planned(dtype, shape)),
            Device::Cpu(_) => Ok(Tensor::zeros(dtype, shape)),
            Device::Gpu(gpu) => Tensor::zeros_on(gpu, dtype, shape),
        };
        made.unwrap_or_else(|e| {
            self.failed = Some(e);
            Tensor::planned(dtype, shape)
        })
    }

    /// Fills whole rows of one of its tensors, from row `first` on.
    pub fn put_rows(&mut self, to: &mut Tensor, first: usize, values: &[f32]) {
        if let Err(e) = to.put_rows(first, values) {
            self.failed.get_or_insert(e);
        }
    }

    /// Counts what one op works in on a GPU, in bytes: ops take turns, so the most of all is what is reserved.
    pub fn workspace(&mut self, bytes: impl FnOnce() -> usize) {
        if let Device::Cpu(_) = self.device {
            return;
        }
        let bytes = bytes();
        match self.used.iter_mut().find(|(g, _)| *g == WORKSPACE) {
            Some((_, most)) => *most = (*most).max(bytes as u64),
            None => self.used.push((WORKSPACE, bytes as u64)),
        }
    }

    /// Reserves the workspace, and tells what could not be had. Comes after the last tensor, before anything runs.
    pub fn finish(&mut self) -> Result<()> {
        if let Some(e) = self.failed.take() {
            return Err(e);
        }
        let workspace = self.used.iter().find(|(g, _)| *g == WORKSPACE);
        match (&self.device, workspace) {
            (Device::Gpu(gpu), Some((_, bytes))) if !self.planning => gpu.reserve(*bytes as usize),
            _ => Ok(()),
        }
    }

    /// A tensor of activations: the type that the device computes in.
    pub fn activation(&mut self, shape: &[usize]) -> Tensor {
        self.tensor(self.device.activation(), shape)
    }

    /// A tensor of statistics.
    pub fn statistic(&mut self, shape: &[usize]) -> Tensor {
        self.tensor(self.device.statistic(), shape)
    }

    /// A frozen weight of `Bf16` or else `F32` in the CPU's packed layout.
    pub fn panels(&mut self, dtype: DType, shape: [usize; 2]) -> Tensor {
        self.count(Panels::bytes(dtype == DType::Bf16, shape[0], shape[1]));
        if self.planning { Tensor::planned(dtype, &shape) } else { Tensor::panels(dtype, shape) }
    }

    /// Bytes by group, in the order of first use.
    pub fn used(&self) -> &[(&'static str, u64)] {
        &self.used
    }

    /// Bytes over all groups.
    pub fn total(&self) -> u64 {
        self.used.iter().map(|(_, b)| b).sum()
    }

    /// Refuses a plan that the device has no room for, with the numbers and `hint`.
    pub fn check(&self, hint: impl Into<Message>) -> Result<()> {
        let Some(available) = self.device.available() else { return Ok(()) };
        if self.total() <= available {
            return Ok(());
        }
        let parts: Vec<_> = self.used.iter().map(|(g, b)| format!("{g} {}", amount(*b))).collect();
        Err(Error::device(message![
            format!("the plan needs {} ({}), ", amount(self.total()), parts.join(", ")),
            format!("the device has {}; try ", amount(available)),
            hint
        ]))
    }
}

/// Bytes in GiB, or in MiB below one, with one decimal.
pub fn amount(bytes: u64) -> String {
    let (unit, name) = if bytes >= 1 << 30 { (1u64 << 30, "GiB") } else { (1 << 20, "MiB") };
    format!("{:.1} {name}", bytes as f64 / unit as f64)
}
