//! Tensor maps by the driver.

use super::failed;
use crate::device::launch::{Swizzle, TensorMap, Tiles};
use crate::error::Result;
use cudarc::driver::sys;
use std::ffi::c_void;

/// Encodes a tensor map of the array at `address`.
pub fn encode(address: u64, tiles: &Tiles) -> Result<TensorMap> {
    use sys::CUtensorMapDataType as Type;
    use sys::CUtensorMapSwizzle as Mode;
    let mut map = sys::CUtensorMap { opaque: [0; 16] };
    let ones = [1u32; 5];
    let swizzle = match tiles.swizzle {
        Swizzle::None => Mode::CU_TENSOR_MAP_SWIZZLE_NONE,
        Swizzle::B32 => Mode::CU_TENSOR_MAP_SWIZZLE_32B,
        Swizzle::B64 => Mode::CU_TENSOR_MAP_SWIZZLE_64B,
        Swizzle::B128 => Mode::CU_TENSOR_MAP_SWIZZLE_128B,
    };
    let dtype = match tiles.float {
        true => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        false => Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
    };
    // SAFETY: every list is as long as the rank says (checked by the caller); all live to the end of the call.
    let encoded = unsafe {
        sys::cuTensorMapEncodeTiled(
            &mut map,
            dtype,
            tiles.sizes.len() as u32,
            address as *mut c_void,
            tiles.sizes.as_ptr(),
            tiles.strides.as_ptr(),
            tiles.tile.as_ptr(),
            ones.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzle,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    // The driver says no more than "invalid value": the numbers are ours to give.
    failed(&format!("cuTensorMapEncodeTiled of {tiles:?}"), encoded.result())?;
    Ok(TensorMap(map.opaque))
}
