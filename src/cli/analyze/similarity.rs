//! `llm2vec analyze similarity`: states under causal against those under full attention.

use super::AnalysisFlags;
use crate::cli::table::aligned;
use crate::cli::{print, say};
use crate::error::{Error, Result};
use crate::eval::analyze::{plot, similarity};
use crate::format::input::{self, Format, Reading};
use crate::model::config::Attention;
use clap::Args;
use serde_json::json;
use std::path::Path;

/// Cosines of every token's states under causal and under full attention, layer by layer (the paper's figures 5, 8 and 9).
#[derive(Args)]
#[command(after_help = "Examples:
  llm2vec analyze similarity -m DIR --text paragraph.txt -o similarity.json --plot similarity.svg
  llm2vec analyze similarity -m DIR --adapter mntp --text 'A heavy rain fell upon the roof all night.'
With --attention MASK causal is compared with that mask.")]
pub struct Similarity {
    #[command(flatten)]
    flags: AnalysisFlags,
    /// The text: a file, whose lines are one text, or the words themselves
    #[arg(long, env = "LLM2VEC_TEXT", value_name = "FILE|STRING")]
    text: String,
}

impl Similarity {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let text = self.text()?;
        self.flags.check_outputs(&[Path::new(&self.text)])?;
        let masks = [Attention::Causal, self.flags.attentions().pop().unwrap_or(Attention::Full)];
        let mut session = self.flags.open("similarity", None, false)?;
        let mut states = Vec::new();
        for mask in masks {
            session.attend(mask)?;
            let (encoder, tally) = (&mut session.encoder, &mut session.tally);
            let added = |texts, tokens| tally.add(texts, tokens);
            states.push(similarity::states(encoder, &text, &self.flags.instruction, added)?);
        }
        let report = similarity::compare(&text, &states[0], &states[1], session.encoder.setup.config.width);
        if report.cut {
            let n = report.tokens.len();
            say(format_args!("warning: the text was cut to {n} tokens (--doc-max-length, --max-length)"));
        }
        if let Some(path) = &self.flags.plot {
            let title = format!("Cosine of states: {} and {} attention", masks[0].name(), masks[1].name());
            plot::heat_map(path, &title, &report)?;
        }
        let names = masks.map(Attention::name);
        session.finish(json!({ "text": text, "attention": names, "report": report }))?;
        let mut rows = vec![["layer", "mean", "lowest", "highest"].map(String::from).to_vec()];
        for ((layer, row), mean) in report.layers.iter().zip(&report.similarity).zip(&report.mean_by_layer) {
            let (low, high) = row.iter().fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
            let figures = [*mean, low, high].map(|v| format!("{v:.4}"));
            rows.push([layer.to_string()].into_iter().chain(figures).collect());
        }
        print(&format!("{}mean over layers above the embedding: {:.4}\n", aligned(&rows), report.mean))
    }

    /// The words of the file of this name, or the flag's own.
    fn text(&self) -> Result<String> {
        let path = Path::new(&self.text);
        if !path.exists() {
            // A name that leads nowhere is no text.
            if !self.text.contains(char::is_whitespace) && self.text.contains(['/', '.']) {
                let what = "no such file, and a text was wanted of more than one word";
                return Err(Error::usage(format!("--text {}: {what}", self.text)));
            }
            return Ok(self.text.clone());
        }
        let records = input::open(&self.text, &Reading { format: Some(Format::Text), text_column: None })?;
        let mut lines = records.map(|record| Ok(record?.text)).collect::<Result<Vec<_>>>()?;
        lines.retain(|line| !line.trim().is_empty());
        match lines.is_empty() {
            true => Err(Error::file(path, "holds no text")),
            false => Ok(lines.join(" ")),
        }
    }
}
