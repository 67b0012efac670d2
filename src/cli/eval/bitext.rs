//! `llm2vec eval bitext`.

use super::source::SetFlags;
use crate::error::Result;
use crate::eval::bitext;
use clap::Args;

/// Bitext mining: F1, accuracy, precision and recall of the nearest translation; test.jsonl of source, target.
#[derive(Args)]
#[command(after_help = "Examples:
  llm2vec eval bitext -m DIR --data bitext/deu-eng -o scores.json
  llm2vec eval bitext --vectors theirs.npy --data bitext/deu-eng    # a row for source, target of each line")]
pub struct Bitext {
    #[command(flatten)]
    set: SetFlags,
}

impl Bitext {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let mut session = self.set.open("bitext")?;
        let scores = bitext::run(&mut session.vectors, &self.set.data, &session.instruction.query)?;
        session.scores(&scores)
    }
}
