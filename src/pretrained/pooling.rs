//! Which vector of a text is its embedding, by everybody's names.

use crate::error::{Error, Result};
use crate::ops::pool::Pooling;
use serde::{Deserialize, Serialize};

/// Which vector of a text is its embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(try_from = "String", into = "&'static str")]
pub enum PoolingMode {
    /// Average.
    Mean,
    #[cfg_attr(feature = "cli", value(alias = "weighted_mean"))]
    /// Average with weights 1, 2, …, n.
    WeightedMean,
    #[cfg_attr(feature = "cli", value(aliases = ["last_token", "last-token"]))]
    /// The last token of the pooled span.
    Last,
    #[cfg_attr(feature = "cli", value(aliases = ["eos_token", "eos-token"]))]
    /// The EOS token, appended where the tokenizer does not.
    Eos,
    #[cfg_attr(feature = "cli", value(aliases = ["bos_token", "bos-token"]))]
    /// The BOS token, which the tokenizer must put first.
    Bos,
    #[cfg_attr(feature = "cli", value(aliases = ["cls", "first_token", "first-token"]))]
    /// The first token of the row, whatever it is: sentence-transformers' `cls`.
    First,
}

/// Mode, our name, the reference's, sentence-transformers'.
const NAMES: [(PoolingMode, &str, &str, &str); 6] = [
    (PoolingMode::Mean, "mean", "mean", "mean"),
    (PoolingMode::WeightedMean, "weighted-mean", "weighted_mean", "weightedmean"),
    (PoolingMode::Last, "last", "last_token", "lasttoken"),
    (PoolingMode::Eos, "eos", "eos_token", "lasttoken"),
    (PoolingMode::Bos, "bos", "bos_token", "cls"),
    (PoolingMode::First, "first", "bos_token", "cls"),
];

impl TryFrom<String> for PoolingMode {
    type Error = Error;

    fn try_from(name: String) -> Result<PoolingMode> {
        PoolingMode::by_name(&name)
    }
}

impl From<PoolingMode> for &'static str {
    fn from(mode: PoolingMode) -> &'static str {
        mode.name()
    }
}

impl PoolingMode {
    /// By our name or the reference's.
    pub fn by_name(name: &str) -> Result<PoolingMode> {
        let name = name.replace('_', "-");
        let short = name.strip_suffix("-token").unwrap_or(&name);
        let found = NAMES.iter().find(|(_, ours, ..)| *ours == short || *ours == name);
        match (found, short) {
            (Some((mode, ..)), _) => Ok(*mode),
            (None, "cls") => Ok(PoolingMode::First),
            (None, _) => {
                let what = "expected mean, weighted-mean, last, eos, bos or first";
                Err(Error::usage(format!("pooling `{name}`: {what}")))
            }
        }
    }

    /// By sentence-transformers' name; `None` for the modes that we do not have.
    pub fn by_sentence_transformers(name: &str) -> Option<PoolingMode> {
        match name {
            "cls" => Some(PoolingMode::First),
            _ => NAMES.iter().find(|(_, _, _, theirs)| *theirs == name).map(|(mode, ..)| *mode),
        }
    }

    fn names(self) -> (&'static str, &'static str, &'static str) {
        let found = NAMES.iter().find(|(mode, ..)| *mode == self);
        found.map_or(("", "", ""), |&(_, ours, reference, theirs)| (ours, reference, theirs))
    }

    /// Our name.
    pub fn name(self) -> &'static str {
        self.names().0
    }

    /// The name that the reference writes into `llm2vec_config.json`.
    pub fn reference_name(self) -> &'static str {
        self.names().1
    }

    /// The name that sentence-transformers writes into `1_Pooling/config.json`.
    pub fn sentence_transformers_name(self) -> &'static str {
        self.names().2
    }

    /// The op's name.
    pub fn op(self) -> Pooling {
        match self {
            PoolingMode::Mean => Pooling::Mean,
            PoolingMode::WeightedMean => Pooling::WeightedMean,
            PoolingMode::Last | PoolingMode::Eos => Pooling::Last,
            PoolingMode::Bos | PoolingMode::First => Pooling::First,
        }
    }
}
