//! `llm2vec merge`: adapters, if any, folded into the weights, as a folder that Transformers, sentence-transformers and
//! the reference open to the same vectors.

use crate::cli::info::tell;
use crate::cli::{FLAGS, ModelFlags, say};
use crate::device::DType;
use crate::error::{Error, Result};
use crate::format::{atomic, hf};
use crate::model::lora::Delta;
use crate::model::weights::Source;
use crate::pretrained::export;
use crate::pretrained::open::Setup;
use crate::tensor::Raw;
use clap::Args;
use half::{bf16, f16};
use std::borrow::Cow;
use std::path::PathBuf;

/// Write an encoder as a Hugging Face and sentence-transformers folder, adapters folded into its weights.
#[derive(Args)]
#[command(after_help = "Examples:
  llm2vec merge -m DIR --adapter mntp --adapter simcse --pool-over all -o merged
  llm2vec merge -m DIR --pooling eos --normalize -o encoder     (a base without an adapter)")]
pub struct Merge {
    #[command(flatten)]
    model: ModelFlags,
    /// Folder to write; must not exist yet
    #[arg(short, long, env = "LLM2VEC_OUTPUT", value_name = "DIR")]
    output: PathBuf,
}

impl Merge {
    /// Runs the command: everything is written under a temporary name beside the target, then renamed.
    pub fn run(self) -> Result<()> {
        let options = self.model.options()?;
        if self.output.exists() {
            return Err(Error::usage(format!(
                "--output {} exists; merge writes a new folder",
                self.output.display()
            )));
        }
        let setup = Setup::open(&options)?;
        tell(&setup, true);
        let parent = self.output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(".".as_ref());
        let folder = atomic::folder_in(parent, ".merge-")?;
        let notes = export::write(&setup, folder.path())?;
        write_weights(&setup, folder.path())?;
        atomic::publish_folder(folder, &self.output)?;
        say(setup.attention_line().spelled(FLAGS));
        notes.iter().for_each(|note| say(note.spelled(FLAGS)));
        Ok(())
    }
}

fn write_weights(setup: &Setup, to: &std::path::Path) -> Result<()> {
    let checkpoint = &setup.files.checkpoint;
    let has_table = checkpoint.find("model.embed_tokens.weight").is_some();
    let mut tensors = Vec::new();
    for name in checkpoint.names() {
        let Some(tensor) = checkpoint.get(name) else { continue };
        let raw = setup.files.raw(tensor)?;
        let deltas = place(name).map_or(Vec::new(), |(layer, module)| setup.files.deltas(layer, module));
        // A tied matrix stored as the head alone is given the name that every loader looks for.
        let name = if setup.config.tied && !has_table && name == "lm_head.weight" {
            "model.embed_tokens.weight"
        } else {
            name
        };
        tensors.push((name.to_string(), Merged { raw, deltas }));
    }
    hf::write_safetensors(&to.join("model.safetensors"), tensors)
}

/// `(layer, module)` of a projection weight's name.
fn place(name: &str) -> Option<(usize, &str)> {
    let name = name.strip_prefix("model.").unwrap_or(name);
    let mut parts = name.strip_prefix("layers.")?.split('.');
    let (layer, _group, module) = (parts.next()?.parse().ok()?, parts.next()?, parts.next()?);
    (parts.next() == Some("weight") && parts.next().is_none()).then_some((layer, module))
}

/// A tensor whose bytes are made when they are written: one tensor in memory at a time.
struct Merged<'a> {
    raw: Raw<'a>,
    deltas: Vec<&'a Delta>,
}

impl safetensors::View for Merged<'_> {
    fn dtype(&self) -> safetensors::Dtype {
        match self.raw.dtype {
            DType::Bf16 => safetensors::Dtype::BF16,
            DType::F16 => safetensors::Dtype::F16,
            _ => safetensors::Dtype::F32,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.raw.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        if self.deltas.is_empty() {
            return Cow::Borrowed(self.raw.data);
        }
        let mut bytes = Vec::with_capacity(self.raw.data.len());
        let mut row = vec![0.0; self.raw.shape[1]];
        for r in 0..self.raw.shape[0] {
            self.raw.row(r, &mut row);
            self.deltas.iter().for_each(|d| d.add_to_row(r, &mut row));
            for &v in &row {
                match self.raw.dtype {
                    DType::Bf16 => bytes.extend(bf16::from_f32(v).to_le_bytes()),
                    DType::F16 => bytes.extend(f16::from_f32(v).to_le_bytes()),
                    _ => bytes.extend(v.to_le_bytes()),
                }
            }
        }
        Cow::Owned(bytes)
    }

    fn data_len(&self) -> usize {
        self.raw.data.len()
    }
}
