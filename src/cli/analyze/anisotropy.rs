//! `llm2vec analyze anisotropy`: the mean cosine of two vectors, layer by layer.

use super::AnalysisFlags;
use crate::cli::table::aligned;
use crate::cli::{print, say};
use crate::encode::texts::Item;
use crate::error::{Error, Result, message};
use crate::eval::analyze::anisotropy::{self, Layer, Report};
use crate::format::input::{self, Reading};
use crate::format::svg::{self, Curve};
use clap::Args;
use serde_json::{Map, json};
use std::path::PathBuf;

/// How narrow a cone the vectors of each layer fill: the mean cosine over all pairs of tokens of different texts, of one text, and of texts.
#[derive(Args)]
#[command(after_help = "Example:
  llm2vec analyze anisotropy -m DIR --text sentences.txt -o anisotropy.json --plot anisotropy.svg")]
pub struct Anisotropy {
    #[command(flatten)]
    flags: AnalysisFlags,
    /// Texts, as `encode` reads them: one per line, or .jsonl (.gz and .zst too)
    #[arg(long, env = "LLM2VEC_TEXT", value_name = "FILE")]
    text: PathBuf,
    /// Read so many texts at most
    #[arg(long, env = "LLM2VEC_LIMIT", value_name = "N")]
    limit: Option<usize>,
}

/// The figures, by name.
type Figure = (&'static str, fn(&Layer) -> Option<f64>);
const FIGURES: [Figure; 3] = [
    ("tokens", |layer| Some(layer.tokens)),
    ("tokens of one text", |layer| layer.tokens_of_one_text),
    ("texts", |layer| Some(layer.texts)),
];

impl Anisotropy {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        self.flags.check_outputs(&[&self.text])?;
        let records = input::open(&self.text.to_string_lossy(), &Reading::default())?;
        let records = records.take(self.limit.unwrap_or(usize::MAX)).collect::<Result<Vec<_>>>()?;
        if records.len() < 2 {
            let what = format!("{} texts, at least two were wanted to compare", records.len());
            return Err(Error::file(&self.text, what));
        }
        let mut session = self.flags.open("anisotropy", None, true)?;
        let own = &self.flags.instruction;
        let item = |r| -> Item { item(r, own) };
        let items: Vec<Item> = records.iter().map(item).collect();
        let at = |i: usize, e: Error| {
            Error::file(&self.text, message![format!("{}: ", records[i].place), e.message()])
        };
        let mut reports: Vec<(&str, Report)> = Vec::new();
        for mask in self.flags.attentions() {
            session.attend(mask)?;
            let (encoder, tally) = (&mut session.encoder, &mut session.tally);
            let report = anisotropy::run(encoder, &items, at, |texts, tokens| tally.add(texts, tokens))?;
            if report.cut > 0 && reports.is_empty() {
                let what = "texts were cut to the length limits (--doc-max-length, --max-length)";
                say(format_args!("warning: {} {what}", report.cut));
            }
            reports.push((mask.name(), report));
        }
        if let Some(path) = &self.flags.plot {
            let curve = |name: &str, report: &Report, (figure, of): Figure| Curve {
                name: format!("{figure}, {name}"),
                points: report.layers.iter().filter_map(|l| Some((l.layer as f64, of(l)?))).collect(),
            };
            let curves = reports.iter().flat_map(|(name, r)| FIGURES.map(|figure| curve(name, r, figure)));
            let axes = ["layer (0: embedding)", "mean cosine of two"];
            svg::curves(path, "Anisotropy by layer", axes, &curves.collect::<Vec<_>>())?;
        }
        let by_mask: Map<_, _> = reports.iter().map(|(name, r)| (name.to_string(), json!(r))).collect();
        session.finish(json!({ "file": self.text, "reports": by_mask }))?;
        print(&table(&reports))
    }
}

fn item<'a>(record: &'a input::Record, own: &'a str) -> Item<'a> {
    Item { instruction: record.instruction.as_deref().unwrap_or(own), text: &record.text }
}

fn table(reports: &[(&str, Report)]) -> String {
    let mut head = vec!["layer".to_string()];
    head.extend(reports.iter().flat_map(|(name, _)| FIGURES.map(|(figure, _)| format!("{name}: {figure}"))));
    let mut rows = vec![head];
    for layer in 0..reports.first().map_or(0, |(_, r)| r.layers.len()) {
        let number = |v: Option<f64>| v.map_or("-".into(), |v| format!("{v:.4}"));
        let figures = reports.iter().flat_map(|(_, r)| FIGURES.map(|(_, of)| number(of(&r.layers[layer]))));
        rows.push([layer.to_string()].into_iter().chain(figures).collect());
    }
    aligned(&rows)
}
