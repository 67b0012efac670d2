//! The launchers of `kernels/*.cu`, one module a file, written by `build.rs` from the C signatures.
//!
//! A launcher takes the struct of its kernel's arguments, which is named like the kernel (`rmsnorm_fwd`: `RmsnormFwd`), its
//! fields like the parameters in C, but in lower case and without `_or_null`: `const T*` is a `&Tensor`, `T*` a
//! `&mut Tensor`, `NAME_or_null` an `Option`, a PARAMS struct its twin of the same name.
//!
//! Types are checked here, shapes are not: a launcher is `unsafe`, and only ops call it, below their contracts.
#![allow(unused_imports)] // which are used depends on what is there

use crate::device::DType;
use crate::device::gpu::{Argument, Gpu, Launch, TensorMap};
use crate::device::images::{File, Image, Kernel, Resource};
use crate::error::Result;
use crate::tensor::{Tensor, limited};

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
