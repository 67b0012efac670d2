//! `llm2vec eval summary`.

use super::source::SetFlags;
use crate::error::Result;
use crate::eval::summary;
use clap::Args;

/// Summarisation: correlation of similarity to human summaries with people's ratings; test.jsonl of human, machine, relevance.
#[derive(Args)]
#[command(after_help = "Examples:
  llm2vec eval summary -m DIR --data summary/squality -o scores.json
  llm2vec eval summary --vectors theirs.npy --data summary/squality    # human, machine summaries of each line")]
pub struct Summary {
    #[command(flatten)]
    set: SetFlags,
}

impl Summary {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let mut session = self.set.open("summary")?;
        let scores = summary::run(&mut session.vectors, &self.set.data, &session.instruction.query)?;
        session.scores(&scores)
    }
}
