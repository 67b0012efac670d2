//! Tensors as what kernels take: addresses, and maps of their tiles.

use super::{Data, Tensor, refuse};
use crate::device::DType;
use crate::device::gpu::{Argument, Gpu, Memory, Swizzle, TensorMap, Tiles};
use crate::error::Result;

impl Tensor {
    /// The map of a bf16 matrix's tiles of `rows` by 64 columns under the 128-byte swizzle, as a kernel's parameter `name`.
    ///
    /// Errors where the tensor is no bf16 matrix on `gpu`, or its rows are no multiple of 16 bytes.
    pub fn tiles(&self, gpu: &Gpu, name: &str, rows: i32) -> Result<TensorMap> {
        let (Data::Gpu(memory, DType::Bf16), &[n, width]) = (&self.data, &self.shape[..]) else {
            return refuse(
                "launch",
                format!("{name} is {:?} of {:?}, no bf16 matrix on a GPU", self.shape, self.dtype()),
            );
        };
        memory.rename(name);
        let tiles = Tiles {
            float: false,
            sizes: vec![width as u64, n as u64],
            strides: vec![2 * width as u64],
            tile: vec![64, rows.unsigned_abs()],
            swizzle: Swizzle::B128,
        };
        gpu.tensor_map(memory, &tiles)
    }

    /// Where it lies on a GPU.
    pub fn memory(&self) -> Result<&Memory> {
        match &self.data {
            Data::Gpu(memory, _) => Ok(memory),
            _ => Err(self.wrong_type("an array on a GPU")),
        }
    }

    /// Likewise, to be written.
    pub fn memory_mut(&mut self) -> Result<&mut Memory> {
        let wrong = self.wrong_type("an array on a GPU");
        if let Data::Gpu(memory, _) = &mut self.data { Ok(memory) } else { Err(wrong) }
    }

    /// The array as a kernel's parameter `name`, whose elements the C signature says are `dtype`.
    pub fn argument(&self, gpu: &Gpu, name: &str, dtype: DType) -> Result<Argument<'static>> {
        match &self.data {
            Data::Gpu(memory, found) if *found == dtype && memory.is_on(gpu) => {
                memory.rename(name);
                Ok(Argument::Address(memory.address()))
            }
            Data::Gpu(memory, found) if memory.is_on(gpu) => {
                refuse("launch", format!("{name} holds {found:?}, the kernel takes {dtype:?}"))
            }
            _ => refuse("launch", format!("{name} is not on {}", gpu.name())),
        }
    }
}
