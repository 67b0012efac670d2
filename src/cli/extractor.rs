//! Words' features by a model, as `eval words` and `ablate` make them alike.

use crate::device::Device;
use crate::encode::Encoder;
use crate::encode::words::{LabelPosition, WordRows};
use crate::error::Result;
use crate::eval::words::features::Extractor;
use crate::pretrained::chain::{self, Link};
use crate::pretrained::fingerprint;
use crate::pretrained::names::stem;
use crate::pretrained::open::{Options, Setup};
use crate::text::template;
use serde_json::{Value, json};
use std::path::Path;

/// Opens a model for words: the reference puts no chat template around them.
pub fn setup(options: &mut Options) -> Result<Setup> {
    options.template.get_or_insert(template::NONE);
    Setup::open(options)
}

/// The states that the stack was trained for, and why.
pub fn position(setup: &Setup) -> (LabelPosition, String) {
    match chain::mntp(&setup.files.chain) {
        Some(link) => {
            (LabelPosition::Before, format!("{} is MNTP's; --label-position same is the other", link.name))
        }
        None => {
            let named = setup.files.chain.iter().find(|link| stem(&link.name).contains("mntp"));
            let hint =
                |link: &Link| format!("; {} is called so: if it is, --label-position before", link.name);
            let hint = named.filter(|link| link.stage.is_none()).map_or(String::new(), hint);
            (LabelPosition::Same, format!("no adapter is known to be MNTP's{hint}"))
        }
    }
}

/// The extractor of a model, which is loaded when something is to be computed.
pub fn of_model(
    setup: Setup,
    cache: Option<&Path>,
    rows: WordRows,
    progress: impl FnMut(usize, usize) + 'static,
) -> Result<Extractor> {
    let of = decisive(&setup)?;
    Extractor::new(cache, of, rows, Box::new(move || Encoder::load(setup)), progress)
}

/// All of a setup that decides a word's states.
pub fn decisive(setup: &Setup) -> Result<Value> {
    let device = match &setup.device {
        Device::Cpu(dtype) => format!("cpu {dtype:?} {:?}", setup.storage),
        Device::Gpu(_) => "gpu".into(),
    };
    Ok(json!({
        "files": fingerprint::model(&setup.stack)?,
        "adapters": setup.files.chain.iter().map(|link| &link.sha256).collect::<Vec<_>>(),
        "attention": setup.attention.name(),
        "template": setup.template,
        "limits": [setup.limits.max_length, setup.limits.doc_max_length],
        "eos": setup.pooling.reference_name() == "eos_token",
        "device": device,
    }))
}
