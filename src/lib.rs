//! LLM2Vec: a decoder-only LLM as a text encoder.
#![deny(unsafe_code, unsafe_op_in_unsafe_fn)]
#![warn(missing_docs)]

pub mod bench;
pub mod cli;
pub mod device;
pub mod encode;
pub mod error;
pub mod eval;
pub mod format;
#[allow(unsafe_code)]
mod kernels;
pub mod memory;
pub mod model;
#[allow(unsafe_code)]
pub mod ops;
pub mod pretrained;
pub mod rng;
pub mod tensor;
pub mod text;
pub mod train;

/// The launchers, for the tests of this package; an op is what others call.
///
/// Nothing of a launch goes by its place. This compiles:
///
/// ```no_run
/// use llm2vec::device::gpu::{Gpu, Launch};
/// use llm2vec::launches::rmsnorm::{RmsnormFwd, rmsnorm_fwd};
/// use llm2vec::tensor::Tensor;
/// fn launched(gpu: &Gpu, y: &mut Tensor, rstd: &mut Tensor, x: &Tensor, w: &Tensor) -> llm2vec::error::Result<()> {
///     let arguments = RmsnormFwd { y, rstd, x, w, n: 1, c: 8, eps: 1e-5 };
///     unsafe { rmsnorm_fwd(gpu, Launch::line(1, 32), arguments) }
/// }
/// ```
///
/// Not so with an argument forgotten,
///
/// ```compile_fail,E0063
/// use llm2vec::device::gpu::{Gpu, Launch};
/// use llm2vec::launches::rmsnorm::{RmsnormFwd, rmsnorm_fwd};
/// use llm2vec::tensor::Tensor;
/// fn launched(gpu: &Gpu, y: &mut Tensor, rstd: &mut Tensor, x: &Tensor, w: &Tensor) -> llm2vec::error::Result<()> {
///     let arguments = RmsnormFwd { y, rstd, x, w, n: 1, c: 8 };
///     unsafe { rmsnorm_fwd(gpu, Launch::line(1, 32), arguments) }
/// }
/// ```
///
/// one that the kernel does not know,
///
/// ```compile_fail,E0560
/// use llm2vec::device::gpu::{Gpu, Launch};
/// use llm2vec::launches::rmsnorm::{RmsnormFwd, rmsnorm_fwd};
/// use llm2vec::tensor::Tensor;
/// fn launched(gpu: &Gpu, y: &mut Tensor, rstd: &mut Tensor, x: &Tensor, w: &Tensor) -> llm2vec::error::Result<()> {
///     let arguments = RmsnormFwd { y, rstd, x, w, n: 1, c: 8, eps: 1e-5, p: 3 };
///     unsafe { rmsnorm_fwd(gpu, Launch::line(1, 32), arguments) }
/// }
/// ```
///
/// one of another type,
///
/// ```compile_fail,E0308
/// use llm2vec::device::gpu::{Gpu, Launch};
/// use llm2vec::launches::rmsnorm::{RmsnormFwd, rmsnorm_fwd};
/// use llm2vec::tensor::Tensor;
/// fn launched(gpu: &Gpu, y: &mut Tensor, rstd: &mut Tensor, x: &Tensor, w: &Tensor) -> llm2vec::error::Result<()> {
///     let arguments = RmsnormFwd { y, rstd, x, w, n: 1, c: 8.0, eps: 1e-5 };
///     unsafe { rmsnorm_fwd(gpu, Launch::line(1, 32), arguments) }
/// }
/// ```
///
/// or a call that does not say `unsafe`:
///
/// ```compile_fail,E0133
/// use llm2vec::device::gpu::{Gpu, Launch};
/// use llm2vec::launches::rmsnorm::{RmsnormFwd, rmsnorm_fwd};
/// use llm2vec::tensor::Tensor;
/// fn launched(gpu: &Gpu, y: &mut Tensor, rstd: &mut Tensor, x: &Tensor, w: &Tensor) -> llm2vec::error::Result<()> {
///     let arguments = RmsnormFwd { y, rstd, x, w, n: 1, c: 8, eps: 1e-5 };
///     rmsnorm_fwd(gpu, Launch::line(1, 32), arguments)
/// }
/// ```
#[doc(hidden)]
pub mod launches {
    pub use crate::kernels::*;
}
