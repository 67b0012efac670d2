//! `llm2vec eval sts`: semantic textual similarity.

use super::source::SourceFlags;
use crate::cli::lists::{Listed, paths};
use crate::cli::print;
use crate::error::Result;
use crate::eval::scores::Scores;
use crate::eval::sts::{self, Report};
use clap::Args;
use serde_json::json;

/// Semantic similarity: Spearman and Pearson correlation (x 100) of cosines and of inner products with people's judgement.
#[derive(Args)]
#[command(after_help = "Examples:
  llm2vec eval sts -m DIR --data sts.tsv
  llm2vec eval sts -m DIR --adapter mntp --adapter simcse --data FOLDER -o scores.json")]
pub struct Sts {
    /// TSV with the header subset, score, sentence1, sentence2 (.gz and .zst too), or a folder of such; may be repeated
    #[arg(long, env = "LLM2VEC_DATA", required = true, value_name = "PATH")]
    data: Vec<Listed>,
    #[command(flatten)]
    source: SourceFlags,
}

impl Sts {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let lists = paths(&self.data).iter().map(|path| sts::files(path)).collect::<Result<Vec<_>>>()?;
        let lists = lists.concat();
        let mut session = self.source.open("sts", &lists)?;
        let report = sts::run(&mut session.vectors, &lists, &session.instruction.query)?;
        session.finish(json!({ "scores": report.scores(), "mean_of_files": report.mean }))?;
        table(&report)
    }
}

/// The figures by cosine and inner product as a table on stdout.
fn table(report: &Report) -> Result<()> {
    let heads = ["file", "subset", "pairs", "spearman", "pearson", "dot spearman", "dot pearson"];
    let mut rows = vec![heads.map(String::from)];
    let mut row = |file: &str, subset: &str, scores: &Scores| {
        let number = |name| scores.value(name).map_or("-".into(), |v| format!("{:.2}", 100.0 * v));
        let [spearman, pearson] = ["cosine_spearman", "cosine_pearson"].map(number);
        let [dot_spearman, dot_pearson] = ["dot_spearman", "dot_pearson"].map(number);
        let pairs = scores.counts.first().map_or("-".into(), |(_, pairs)| pairs.to_string());
        rows.push([file.into(), subset.into(), pairs, spearman, pearson, dot_spearman, dot_pearson]);
    };
    for (file, scores) in &report.files {
        let name = file.file_name().unwrap_or(file.as_os_str()).to_string_lossy();
        scores.subsets.iter().for_each(|(subset, scores)| row(&name, subset, scores));
        if scores.subsets.len() > 1 {
            row(&name, "(all)", scores);
        }
    }
    if report.files.len() > 1 {
        row("(all pairs)", "", &report.all);
        row("(mean of files)", "", &report.mean);
    }
    let width = |column: usize| rows.iter().map(|r| r[column].chars().count()).max().unwrap_or(0);
    let widths = [0, 1, 2, 3, 4, 5, 6].map(width);
    let lines = rows.iter().map(|row| {
        let cell = |(i, cell): (usize, &String)| match i {
            0 | 1 => format!("{cell:<0$}", widths[i]),
            _ => format!("{cell:>0$}", widths[i]),
        };
        row.iter().enumerate().map(cell).collect::<Vec<_>>().join("  ") + "\n"
    });
    print(&lines.collect::<String>())
}
