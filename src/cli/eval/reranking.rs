//! `llm2vec eval reranking`.

use super::source::SetFlags;
use crate::error::Result;
use crate::eval::reranking;
use clap::Args;

/// Reranking: MAP and MRR of each query's own candidates; test.jsonl of query, positive, negative.
#[derive(Args)]
#[command(after_help = "Examples:
  llm2vec eval reranking -m DIR --data reranking/scifact-rationale -o scores.json
  llm2vec eval reranking --vectors theirs.npy --data reranking/scifact-rationale    # query, positives, negatives of each line")]
pub struct Reranking {
    #[command(flatten)]
    set: SetFlags,
}

impl Reranking {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let mut session = self.set.open("reranking")?;
        let scores = reranking::run(&mut session.vectors, &self.set.data, &session.instruction)?;
        session.scores(&scores)
    }
}
