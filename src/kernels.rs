//! The launchers of `kernels/*.cu`, one module a file, written by `build.rs` from the C signatures: `const T*` is a
//! `&Tensor`, `T*` a `&mut Tensor`, `NAME_or_null` an `Option`. Parameters keep the letters that they have in C.
#![allow(non_snake_case, unused_imports, clippy::too_many_arguments)] // which are used depends on what is there

use crate::device::DType;
use crate::device::gpu::{Argument, Gpu, Launch, TensorMap};
use crate::device::images::{File, Image, Kernel, Resource};
use crate::error::Result;
use crate::tensor::Tensor;

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
