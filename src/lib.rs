//! Decoder-only LLMs as text encoders: LLM2Vec (BehnamGhader et al., 2024, <https://arxiv.org/abs/2404.05961>), on CUDA
//! kernels and a backward written by hand.
//!
//! A folder of Llama, Mistral or Qwen2 weights becomes an encoder by three steps: bidirectional attention, masked
//! next-token prediction (MNTP), contrastive learning; each a LoRA adapter on frozen weights. This crate runs the whole of
//! it: train, encode, evaluate, bench. The same graph runs on a GPU, on the CPU, and on an emulator of the GPU that checks
//! every access.
//!
//! # Embed texts
//!
//! ```
//! use llm2vec::{Encoder, EncoderOptions};
//! # fn main() -> llm2vec::Result<()> {
//! let mut encoder = Encoder::open(&EncoderOptions::new("tests/models/novel5m"))?;
//! let vectors = encoder.embed(&["A heavy rain fell upon the roof.", "The snow lay thick upon the fields."])?;
//! assert_eq!((vectors.len(), vectors[0].len()), (2, 256));
//! # Ok(())
//! # }
//! ```
//!
//! A model is a folder or a name in the local Hugging Face cache; folders of sentence-transformers and published LLM2Vec
//! adapters are opened to the vectors that their own programs give. [`EncoderOptions`] has pooling, attention, lengths,
//! adapters; what is left out is what the folder says.
//!
//! # Train
//!
//! Three steps of unsupervised SimCSE, the paper's settings but for their number and size:
//!
//! ```
//! use llm2vec::{Stage, TrainConfig, Trainer, TrainerOptions};
//! # fn main() -> llm2vec::Result<()> {
//! # let folder = std::env::temp_dir().join(format!("llm2vec-guide-{}", std::process::id()));
//! let mut config = TrainConfig::new(Stage::Simcse);
//! config.model_name_or_path = Some("tests/models/novel5m".into());
//! config.train_file = Some("tests/texts/sentences.txt".into());
//! config.output_dir = Some(folder.to_string_lossy().into_owned());
//! config.stop_after_n_steps = 3;
//! config.per_device_train_batch_size = 4;
//! config.max_seq_length = 24;
//! let losses = Trainer::open(TrainerOptions::new(config))?.run()?;
//! assert_eq!(losses.steps, 3);
//! assert!(folder.join("adapter_model.safetensors").exists());
//! # let _ = std::fs::remove_dir_all(&folder);
//! # Ok(())
//! # }
//! ```
//!
//! The adapter is PEFT's to the letter. A run that is stopped goes on bit for bit
//! ([`Existing::Resume`]).
//!
//! # Errors and features
//!
//! An [`Error`] says what was got, what was wanted, what to try, and names settings by their fields; [`Error::message`] has
//! them as [`Setting`]s, for a program that knows them by other names. Feature `cli`, on by default, is the command with
//! its progress bars and the plot of a run: a library does without (`default-features = false`), and a run that is then
//! asked for a plot is refused.
//!
//! # Run a kernel without a GPU
//!
//! The emulator is a crate of its own, [`ptx_emulator`], for any kernel that nvcc compiled:
//!
//! ```
//! use ptx_emulator::{Emulator, Launch, Module};
//! # fn main() -> ptx_emulator::Result<()> {
//! let text = ".version 9.0\n.target sm_80\n.address_size 64\n.visible .entry twice(.param .u64 x) {
//!     .reg .b32 %r<3>; .reg .b64 %d<4>;
//!     ld.param.u64 %d1, [x]; mov.u32 %r1, %tid.x; mul.wide.u32 %d2, %r1, 4; add.s64 %d3, %d1, %d2;
//!     ld.global.u32 %r2, [%d3]; add.s32 %r2, %r2, %r2; st.global.u32 [%d3], %r2; ret; }";
//! let mut emulator = Emulator::new(Module::parse("twice.ptx", text)?)?;
//! let x = emulator.allocate("x", 8);
//! emulator.write(x, &[3, 0, 0, 0, 4, 0, 0, 0])?;
//! let launch = Launch { block: [2, 1, 1], ..Launch::default() };
//! let counters = emulator.launch("twice", &launch, &[&x.to_le_bytes()[..]])?;
//! assert_eq!(emulator.read(x, 8)?, [6, 0, 0, 0, 8, 0, 0, 0]);
//! assert_eq!(counters.total.bytes, 16);
//! # Ok(())
//! # }
//! ```
//!
//! # When not
//!
//! Other architectures than Llama's, quantised weights, more than one GPU, and generation: use Transformers or vLLM. A few
//! vectors in Python: sentence-transformers, whose folders `llm2vec merge` writes.
//!
//! # How it is laid out
//!
//! ```text
//! error -> device -> tensor -> memory -> kernels -> ops -> model -> pretrained -> encode -> train, eval -> bench -> cli
//! error -> format, text -----------------------------------------^
//! ```
//!
//! Arrows point to the user; nobody uses a module to its right. An op (in `ops`) is a plain function that states its
//! shapes and then is a CPU loop or a launch; only `model` composes them: a block is nine lines, its backward the same
//! nine read upwards. Batches are packed, `[N, …]` and `starts [B + 1]`: there is no padding anywhere. Memory is planned
//! by a dry run (`memory::Arena`), refused with its numbers if it does not fit, and allocated once.
//!
//! Letters, everywhere: B sequences in a pack, T the longest, N tokens in a pack, H query heads, G key/value heads, D their
//! width, C the model's width, F the feed-forward's, V vocabulary, L layers, R LoRA rank, P rows of a contrastive batch.
//!
//! # What holds
//!
//! - Two runs give the same bits, on any number of threads; dropout masks are drawn from counters, so a resumed run, and
//!   one that recomputes, does too.
//! - A text's vector does not depend on its company: bit for bit on the CPU, within bf16 rounding on a GPU.
//! - What is not supported is refused by name before a weight is read; what is written appears under its name when it is
//!   whole.
//! - No safe call of this crate can write out of bounds on a device.
#![deny(unsafe_code, unsafe_op_in_unsafe_fn)]
#![warn(missing_docs)]

// What a user needs stands below, at the root; the modules are open for the tests and benches of this package.
#[doc(hidden)]
pub mod bench;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
#[doc(hidden)]
pub mod device;
#[doc(hidden)]
pub mod encode;
#[doc(hidden)]
pub mod error;
#[doc(hidden)]
pub mod eval;
#[doc(hidden)]
pub mod format;
#[allow(unsafe_code)]
mod kernels;
#[doc(hidden)]
pub mod memory;
#[doc(hidden)]
pub mod model;
#[allow(unsafe_code)]
#[doc(hidden)]
pub mod ops;
#[doc(hidden)]
pub mod pretrained;
#[doc(hidden)]
pub mod rng;
#[doc(hidden)]
pub mod tensor;
#[doc(hidden)]
pub mod text;
#[doc(hidden)]
pub mod train;

pub use device::Device;
pub use encode::Encoder;
pub use encode::texts::{Empty, Item, Rows};
pub use encode::tokens::{Block, Level, Parts, Passage, WordPooling};
pub use error::{Error, Message, Result, Setting, Spelling};
pub use model::config::Attention;
pub use pretrained::open::{Compute, Options as EncoderOptions, PoolOver};
pub use pretrained::pooling::PoolingMode;
pub use text::prompt::Compat;
pub use text::template::Template;
pub use train::blocks::Grouping;
pub use train::checkpoint::Losses;
pub use train::config::{Invalid, Stage, TrainConfig};
pub use train::folder::Existing;
pub use train::log::Options as LogOptions;
pub use train::mask::{MaskToken, Strategy};
pub use train::run::{Options as TrainerOptions, Trainer};
pub use train::schedule::Decay;

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
