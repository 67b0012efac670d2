//! `llm2vec mine`.

use super::eval::source::{VectorFlags, refuse_inputs};
use crate::cli::table::aligned;
use crate::cli::{FLAGS, print, say};
use crate::error::Result;
use crate::format::unpack::unpacked;
use crate::train::mine::{Column, Form, Miner, Options, Rule, Summary};
use clap::Args;
use clap::builder::BoolishValueParser;
use serde_json::json;
use std::path::PathBuf;

/// Mine hard negatives for supervised training: the documents that the model holds most similar to a query and that do not answer it.
#[derive(Args)]
#[command(after_help = "Examples:
  llm2vec mine -m DIR --adapter mntp --data pairs.jsonl -o mined.jsonl --negatives 7 --relative-margin 0.05
  llm2vec mine -m DIR --data pairs.jsonl --corpus corpus.jsonl.gz -o mined.jsonl --range-min 10 --range-max 100 --sampling random
  llm2vec train supervised -m DIR --adapter mntp --data mined.jsonl -o supervised

Flags are those of sentence-transformers' mine_hard_negatives and mean the same. A query's negatives are never a positive
of any row with the same query, nor the query's own text. The corpus is streamed, every product is computed. Memory: 4
bytes for each number of the queries' vectors, 16 for each candidate (--range-max) of a query, some 50 for a document, and
a window of documents. A packed file or a table is unpacked once, into the folder of temporary files.

--vectors: a row for each query in the order of the rows, then for each text of the corpus, then for each positive; of equal
texts, the first alone.
")]
pub struct Mine {
    /// Rows with a query and its positives, as `train supervised` reads them; negatives that they have are replaced
    #[arg(short = 'i', long, env = "LLM2VEC_DATA", alias = "input", value_name = "FILE")]
    data: PathBuf,
    /// Texts to mine from, beside the positives of all rows: lines of text, or JSON lines, a JSON array, CSV, TSV, Parquet, Arrow, known by content; .gz and .zst too
    #[arg(long, env = "LLM2VEC_CORPUS", value_name = "FILE")]
    corpus: Option<PathBuf>,
    /// The column of a table, or the key of JSON, that holds a text of --corpus [default: text]
    #[arg(long, env = "LLM2VEC_TEXT_COLUMN", value_name = "NAME")]
    text_column: Option<String>,
    /// Stop at the first bad row
    #[arg(long, env = "LLM2VEC_STRICT", value_parser = BoolishValueParser::new())]
    strict: bool,
    /// Rows that `train supervised` and sentence-transformers read
    #[arg(short, long, env = "LLM2VEC_OUTPUT", value_name = "FILE.jsonl")]
    output: PathBuf,
    /// A line for each row with all its negatives, negative_1, negative_2 …, rows with fewer than --negatives left out; or one for each negative
    #[arg(long, env = "LLM2VEC_OUTPUT_FORMAT", default_value = "n-tuple", value_name = "FORM")]
    output_format: Form,
    #[command(flatten)]
    rule: Rule,
    #[command(flatten)]
    vectors: VectorFlags,
}

impl Mine {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        refuse_inputs(
            &self.output,
            std::iter::once(&self.data).chain(&self.corpus).chain(&self.vectors.files()),
        )?;
        let rule = self.rule.clone();
        let miner = Miner::open(Options {
            data: self.data.clone(),
            corpus: self.corpus,
            text_column: self.text_column,
            strict: self.strict,
            output: self.output,
            form: self.output_format,
            rule: self.rule,
            window: 0,
        })?;
        let is_shown = |line: &&String| !self.vectors.quiet || line.starts_with("warning");
        miner.lines.iter().map(|line| line.spelled(FLAGS)).filter(|line| is_shown(&line)).for_each(say);
        // By the name that the data set has for training too.
        let mut session = self.vectors.open("mine", &[unpacked(&self.data).with_extension("")])?;
        let instruction = session.instruction.clone();
        let summary = miner.run(&mut session.vectors, &instruction)?;
        session.finish(json!({}))?;
        if self.vectors.quiet { Ok(()) } else { print(&shown(&summary, &rule)) }
    }
}

/// The table of cosines, and what became of candidates and rows.
fn shown(summary: &Summary, rule: &Rule) -> String {
    let columns = [&summary.positives, &summary.negatives, &summary.differences];
    let number = |value: Option<f64>| value.map_or("-".to_string(), |value| format!("{value:.4}"));
    let row = |name: &str, figure: &dyn Fn(&Column) -> Option<f64>| {
        std::iter::once(name.to_string()).chain(columns.map(|column| number(figure(column)))).collect()
    };
    let mut rows: Vec<Vec<String>> =
        vec![["cosine", "positive", "negative", "difference"].map(String::from).to_vec()];
    rows.push(
        std::iter::once("count".to_string())
            .chain(columns.map(|column| column.count().to_string()))
            .collect(),
    );
    rows.push(row("mean", &Column::mean));
    rows.push(row("std", &Column::deviation));
    for (name, part) in [("min", 0.0), ("25%", 0.25), ("50%", 0.5), ("75%", 0.75), ("max", 1.0)] {
        rows.push(row(name, &|column| column.quantile(part)));
    }
    let mut text = aligned(&rows);
    let Summary { queries, documents, range_max, taken_away, .. } = summary;
    text += &format!("{queries} queries, {documents} documents, the nearest {range_max} of each query\n");
    let named = [
        ("--absolute-margin", rule.absolute_margin, taken_away.absolute_margin),
        ("--relative-margin", rule.relative_margin, taken_away.relative_margin),
        ("--max-score", rule.max_score, taken_away.max_score),
        ("--min-score", rule.min_score, taken_away.min_score),
    ];
    for (flag, value, count) in named {
        if let Some(value) = value {
            let part = 100.0 * count as f64 / taken_away.candidates.max(1) as f64;
            text += &format!("{count} candidates ({part:.2} %) taken away by {flag} {value}\n");
        }
    }
    let Summary { rows, repeated, lacking, lines, .. } = summary;
    let few = format!("{lacking} with fewer than {} negatives", rule.negatives);
    text += &format!("{lines} lines of {rows} rows; {repeated} of them repeated, {few}");
    text + if *lacking > 0 { "; try a larger --range-max\n" } else { "\n" }
}
