//! `llm2vec eval`: how good the vectors are, by data that people have judged; one file per type of task.

mod classification;
mod clustering;
mod source;
mod sts;

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
}

impl Eval {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        match self.task {
            Task::Classification(c) => c.run(),
            Task::Clustering(c) => c.run(),
            Task::Sts(c) => c.run(),
        }
    }
}
