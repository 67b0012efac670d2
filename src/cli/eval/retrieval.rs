//! `llm2vec eval retrieval`.

use super::source::SetFlags;
use crate::error::Result;
use crate::eval::retrieval;
use clap::Args;

/// Retrieval: nDCG, MAP, recall, precision and MRR at 1 to 1000; BEIR's corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv.
#[derive(Args)]
#[command(after_help = "Examples:
  llm2vec eval retrieval -m DIR --data retrieval/scifact --task SciFact -o scores.json
  llm2vec eval retrieval --vectors queries.npy --vectors corpus.npy --data retrieval/scifact    # a row for each line")]
pub struct Retrieval {
    #[command(flatten)]
    set: SetFlags,
    /// Which judgements: qrels/SPLIT.tsv
    #[arg(long, env = "LLM2VEC_SPLIT", default_value = "test", value_name = "SPLIT")]
    split: String,
    /// A document with the id of the query is no answer, as MTEB has it for ArguAna and Quora
    #[arg(long, env = "LLM2VEC_IGNORE_IDENTICAL_IDS", value_parser = clap::builder::BoolishValueParser::new())]
    ignore_identical_ids: bool,
}

impl Retrieval {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let mut session = self.set.open("retrieval")?;
        let scores = retrieval::run(
            &mut session.vectors,
            &self.set.data,
            &self.split,
            &session.instruction,
            self.ignore_identical_ids,
        )?;
        session.scores(&scores)
    }
}
