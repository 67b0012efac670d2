//! `llm2vec eval`: how good the vectors are, by data that people have judged; a file for each type of task that has flags of its own.

mod classification;
mod clustering;
mod layers;
mod retrieval;
pub mod source;
mod sts;
mod suite;
mod words;

use crate::error::Result;
use crate::eval::{bitext, pairs, reranking, summary};
use clap::{Args, Subcommand};
use source::SetFlags;

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
    /// Pair classification: average precision, best F1 and accuracy of four similarities; test.jsonl of text1, text2, label.
    #[command(
        alias = "pair-classification",
        after_help = "Examples:
  llm2vec eval pairs -m DIR --data pairs/paws-wiki -o scores.json
  llm2vec eval pairs --vectors theirs.npy --data pairs/paws-wiki    # a row for text1, text2 of each line"
    )]
    Pairs(SetFlags),
    Retrieval(retrieval::Retrieval),
    /// Reranking: MAP and MRR of each query's own candidates; test.jsonl of query, positive, negative.
    #[command(after_help = "Examples:
  llm2vec eval reranking -m DIR --data reranking/scifact-rationale -o scores.json
  llm2vec eval reranking --vectors theirs.npy --data reranking/scifact-rationale    # query, positives, negatives of each line")]
    Reranking(SetFlags),
    /// Bitext mining: F1, accuracy, precision and recall of the nearest translation; test.jsonl of source, target.
    #[command(
        alias = "bitext-mining",
        after_help = "Examples:
  llm2vec eval bitext -m DIR --data bitext/deu-eng -o scores.json
  llm2vec eval bitext --vectors theirs.npy --data bitext/deu-eng    # a row for source, target of each line"
    )]
    Bitext(SetFlags),
    /// Summarisation: correlation of similarity to human summaries with people's ratings; test.jsonl of human, machine, relevance.
    #[command(aliases = ["summarization", "summarisation"], after_help = "Examples:
  llm2vec eval summary -m DIR --data summary/squality -o scores.json
  llm2vec eval summary --vectors theirs.npy --data summary/squality    # human, machine summaries of each line")]
    Summary(SetFlags),
    Words(Box<words::Words>),
    Suite(Box<suite::Suite>),
}

impl Eval {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        match self.task {
            Task::Classification(c) => c.run(),
            Task::Clustering(c) => c.run(),
            Task::Sts(c) => c.run(),
            Task::Pairs(set) => set.scores("pairs", pairs::run),
            Task::Retrieval(c) => c.run(),
            Task::Reranking(set) => set.scores("reranking", reranking::run),
            Task::Bitext(set) => set.scores("bitext", bitext::run),
            Task::Summary(set) => set.scores("summary", summary::run),
            Task::Words(c) => c.run(),
            Task::Suite(c) => c.run(),
        }
    }
}
