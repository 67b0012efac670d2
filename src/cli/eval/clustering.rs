//! `llm2vec eval clustering`: mini-batch k-means against the labels.

use super::source::SourceFlags;
use crate::error::Result;
use crate::eval::clustering::{self, DataSet, Options};
use crate::eval::sampled::{self, Sampled};
use clap::Args;
use std::path::PathBuf;

/// MTEB's clustering: mini-batch k-means with as many clusters as labels, several seeds; V-measure (x 100).
#[derive(Args)]
#[command(after_help = "Examples:
  llm2vec eval clustering -m DIR --data FOLDER
  llm2vec eval clustering --vectors rows.npy --data FOLDER --repeats 1 -o scores.json")]
pub struct Clustering {
    /// Folder with test.jsonl (.gz and .zst too): {"text": …, "label": …}, and "set" where it has parts that are clustered apart; or {"sentences": text, "labels": label or levels}, MTEB's newer layout, from which rows are drawn
    #[arg(long, env = "LLM2VEC_DATA", value_name = "FOLDER")]
    data: PathBuf,
    #[command(flatten)]
    options: Options,
    #[command(flatten)]
    source: SourceFlags,
}

impl Clustering {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        if let Some(file) = sampled::find(&self.data)? {
            let data = Sampled::read(&file)?;
            let mut session = self.source.open("clustering", &[self.data, file])?;
            let instruction = session.instruction.query.clone();
            let scores = data.run(&mut session.vectors, &instruction, self.options)?;
            return session.scores(&scores);
        }
        let data = DataSet::read(&self.data)?;
        let files = [self.data, data.0.path.clone()];
        let mut session = self.source.open("clustering", &files)?;
        let instruction = session.instruction.query.clone();
        let report = clustering::run(&data, &mut session.vectors, &instruction, self.options)?;
        session.scores(&report.scores())
    }
}
