//! `llm2vec eval classification`: logistic regression on a few training rows of each label.

use super::source::SourceFlags;
use crate::error::Result;
use crate::eval::classification::{self, DataSet, Options};
use clap::Args;
use std::path::PathBuf;

/// MTEB's classification: logistic regression on a few training rows of each label, ten times; accuracy and F1 (x 100).
#[derive(Args)]
#[command(after_help = "Examples:
  llm2vec eval classification -m DIR --data FOLDER
  llm2vec eval classification --vectors rows.npy --data FOLDER --samples-per-label 16 -o scores.json
Vectors are those of the training rows, then those of the test rows.")]
pub struct Classification {
    /// Folder with train.jsonl and test.jsonl (.gz and .zst too): {"text": …, "label": …}, a number or a name
    #[arg(long, env = "LLM2VEC_DATA", value_name = "FOLDER")]
    data: PathBuf,
    #[command(flatten)]
    options: Options,
    #[command(flatten)]
    source: SourceFlags,
}

impl Classification {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let data = DataSet::read(&self.data)?;
        let files = [self.data, data.train.path.clone(), data.test.path.clone()];
        let mut session = self.source.open("classification", &files)?;
        let instruction = session.instruction.query.clone();
        let report = classification::run(&data, &mut session.vectors, &instruction, self.options)?;
        session.scores(&report.scores())
    }
}
