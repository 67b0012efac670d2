//! `llm2vec eval`: how good the vectors are, by data that people have judged; one file per type of task.

mod bitext;
mod classification;
mod clustering;
mod pairs;
mod reranking;
mod retrieval;
mod source;
mod sts;
mod summary;

use crate::error::Result;
use clap::{Args, Subcommand};

/// Measure how good the vectors are.
#[derive(Args)]
pub struct Eval {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    Classification(classification::Classification),
    Clustering(clustering::Clustering),
    Sts(sts::Sts),
    #[command(alias = "pair-classification")]
    Pairs(pairs::Pairs),
    Retrieval(retrieval::Retrieval),
    Reranking(reranking::Reranking),
    #[command(alias = "bitext-mining")]
    Bitext(bitext::Bitext),
    #[command(aliases = ["summarization", "summarisation"])]
    Summary(summary::Summary),
}

impl Eval {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        match self.task {
            Task::Classification(c) => c.run(),
            Task::Clustering(c) => c.run(),
            Task::Sts(c) => c.run(),
            Task::Pairs(c) => c.run(),
            Task::Retrieval(c) => c.run(),
            Task::Reranking(c) => c.run(),
            Task::Bitext(c) => c.run(),
            Task::Summary(c) => c.run(),
        }
    }
}
