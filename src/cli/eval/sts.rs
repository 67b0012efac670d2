//! `llm2vec eval sts`: semantic textual similarity.

use super::source::SourceFlags;
use crate::cli::print;
use crate::error::Result;
use crate::eval::sts::{self, Agreement, Report};
use clap::Args;
use serde_json::json;
use std::path::PathBuf;

/// Spearman and Pearson correlation (x 100) of the vectors' cosine with people's judgement.
#[derive(Args)]
#[command(after_help = "Examples:
  llm2vec eval sts -m DIR --data sts.tsv
  llm2vec eval sts -m DIR --adapter mntp --adapter simcse --data FOLDER -o scores.json")]
pub struct Sts {
    /// TSV with the header subset, score, sentence1, sentence2 (.gz and .zst too), or a folder of such; may be repeated
    #[arg(long, env = "LLM2VEC_DATA", value_delimiter = ',', required = true, value_name = "PATH")]
    data: Vec<PathBuf>,
    #[command(flatten)]
    source: SourceFlags,
}

impl Sts {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let lists = self.data.iter().map(|path| sts::files(path)).collect::<Result<Vec<_>>>()?;
        let lists = lists.concat();
        let mut session = self.source.open("sts", &lists)?;
        let report = sts::run(&mut session.vectors, &lists, &session.instruction.query)?;
        session.finish(json!({ "report": report }))?;
        table(&report)
    }
}

/// The report as a table on stdout.
fn table(report: &Report) -> Result<()> {
    let mut rows = vec![["file", "subset", "pairs", "spearman", "pearson"].map(String::from)];
    let mut row = |file: &str, subset: &str, a: Agreement| {
        let number = |v: Option<f64>| v.map_or("-".into(), |v| format!("{v:.2}"));
        let (pairs, spearman, pearson) = (a.pairs.to_string(), number(a.spearman), number(a.pearson));
        rows.push([file.into(), subset.into(), pairs, spearman, pearson]);
    };
    for file in &report.files {
        let name = file.file.file_name().unwrap_or(file.file.as_os_str()).to_string_lossy();
        file.subsets.iter().for_each(|(subset, a)| row(&name, subset, *a));
        if file.subsets.len() > 1 {
            row(&name, "(all)", file.all);
        }
    }
    if report.files.len() > 1 {
        row("(all pairs)", "", report.all);
        row("(mean of files)", "", report.mean);
    }
    let width = |column: usize| rows.iter().map(|r| r[column].chars().count()).max().unwrap_or(0);
    let [w0, w1, w2, w3, w4] = [0, 1, 2, 3, 4].map(width);
    let lines = rows.iter().map(|[file, subset, pairs, spearman, pearson]| {
        format!("{file:<w0$}  {subset:<w1$}  {pairs:>w2$}  {spearman:>w3$}  {pearson:>w4$}\n")
    });
    print(&lines.collect::<String>())
}
