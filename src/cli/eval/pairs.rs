//! `llm2vec eval pairs`.

use super::source::SetFlags;
use crate::error::Result;
use crate::eval::pairs;
use clap::Args;

/// Pair classification: average precision, best F1 and accuracy of four similarities; test.jsonl of text1, text2, label.
#[derive(Args)]
#[command(after_help = "Examples:
  llm2vec eval pairs -m DIR --data pairs/paws-wiki -o scores.json
  llm2vec eval pairs --vectors theirs.npy --data pairs/paws-wiki    # a row for text1, text2 of each line")]
pub struct Pairs {
    #[command(flatten)]
    set: SetFlags,
}

impl Pairs {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let mut session = self.set.open("pairs")?;
        let scores = pairs::run(&mut session.vectors, &self.set.data, &session.instruction.query)?;
        session.scores(&scores)
    }
}
