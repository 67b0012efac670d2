//! `llm2vec eval`: how good the vectors are, by data that people have judged.

use crate::cli::{ModelFlags, TextFlags, print, progress::Tally, say};
use crate::encode::Encoder;
use crate::error::{Error, Result};
use crate::eval::sts::{self, Agreement, Report};
use crate::format::atomic;
use clap::{Args, Subcommand};
use serde_json::json;
use std::path::PathBuf;

/// Measure how good the vectors are.
#[derive(Args)]
pub struct Eval {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    Sts(Sts),
}

/// Spearman and Pearson correlation (x 100) of the vectors' cosine with people's judgement.
#[derive(Args)]
#[command(after_help = "Examples:
  llm2vec eval sts -m DIR --data sts.tsv
  llm2vec eval sts -m DIR --adapter mntp --adapter simcse --data FOLDER -o scores.json")]
struct Sts {
    #[command(flatten)]
    model: ModelFlags,
    /// TSV with the header subset, score, sentence1, sentence2 (.gz and .zst too), or a folder of such; may be repeated
    #[arg(long, env = "LLM2VEC_DATA", value_delimiter = ',', required = true, value_name = "PATH")]
    data: Vec<PathBuf>,
    /// Scores, settings and all as JSON
    #[arg(short, long, env = "LLM2VEC_OUTPUT", value_name = "FILE.json")]
    output: Option<PathBuf>,
    #[command(flatten)]
    texts: TextFlags,
}

impl Eval {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        match self.task {
            Task::Sts(sts) => sts.run(),
        }
    }
}

impl Sts {
    fn run(self) -> Result<()> {
        let options = self.model.options_for(&self.texts)?;
        let lists = self.data.iter().map(|path| sts::files(path)).collect::<Result<Vec<_>>>()?;
        let lists = lists.concat();
        if let Some(output) = &self.output
            && lists.iter().any(|data| atomic::same_file(data, output))
        {
            let what = "is one of the data files; give another name";
            return Err(Error::usage(format!("--output {} {what}", output.display())));
        }
        // Now, not after minutes of work: can it be written at all?
        self.output.as_deref().map(atomic::beside).transpose()?;
        let mut encoder = Encoder::open(&options)?;
        encoder.setup.warnings.iter().for_each(|w| say(format_args!("warning: {w}")));
        if !self.texts.quiet {
            say(encoder.setup.attention_line());
        }
        let mut tally = Tally::new(self.texts.quiet);
        let (instruction, empty) = (&self.texts.instruction, self.texts.empty);
        let add = |texts, tokens| tally.add(texts, tokens);
        let report = sts::run(&mut encoder, &lists, instruction, empty, add)?;
        tally.cut = report.cut;
        tally.finish();
        if let Some(output) = &self.output {
            let json = json!({
                "task": "sts",
                "model": encoder.setup.dir,
                "adapters": options.adapters,
                "settings": encoder.setup.settings(),
                "instruction": instruction,
                "report": report,
            });
            atomic::write_json(output, &json)?;
        }
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
