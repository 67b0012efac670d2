//! `llm2vec analyze prefix`: whether a prefix knows what follows it.

use super::AnalysisFlags;
use crate::cli::print;
use crate::cli::table::aligned;
use crate::error::Result;
use crate::eval::analyze::{plot, prefix};
use clap::Args;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// Does a prefix know what follows? Triples of one prefix before ends that mean alike and one that does not, only the prefix pooled (figures 4 and 7).
#[derive(Args)]
#[command(after_help = "Examples:
  llm2vec analyze prefix -m DIR --plot prefix.svg
  llm2vec analyze prefix -m DIR --adapter mntp --attention full --triples FILE.jsonl -o prefix.json
Lines of FILE: {\"prefix\": A, \"query\": B, \"positive\": C, \"negative\": D}, where B and C mean alike.")]
pub struct Prefix {
    #[command(flatten)]
    flags: AnalysisFlags,
    /// Triples of your own (.gz and .zst too) [default: 35 that come with the program]
    #[arg(long, env = "LLM2VEC_TRIPLES", value_name = "FILE")]
    triples: Option<PathBuf>,
    /// Take the states after block N: 0 is the embedding, -1 the last, which alone has the final norm [default: -1]
    #[arg(long, env = "LLM2VEC_LAYER", value_name = "N", allow_negative_numbers = true)]
    layer: Option<i64>,
}

impl Prefix {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let triples = self.triples.as_deref().map_or_else(prefix::our_own, prefix::read)?;
        self.flags.check_outputs(&self.triples.as_deref().into_iter().collect::<Vec<&Path>>())?;
        let mut session = self.flags.open("prefix", self.layer, true)?;
        let mut reports = Vec::new();
        for mask in self.flags.attentions() {
            session.attend(mask)?;
            let (encoder, tally) = (&mut session.encoder, &mut session.tally);
            let added = |texts, tokens| tally.add(texts, tokens);
            let report = prefix::run(encoder, &triples, &self.flags.instruction, added)?;
            reports.push((mask.name(), report));
        }
        let panels: Vec<(&str, &prefix::Report)> = reports.iter().map(|(name, r)| (*name, r)).collect();
        if let Some(path) = &self.flags.plot {
            plot::histograms(path, &panels)?;
        }
        let plain: Vec<&prefix::Report> = reports.iter().map(|(_, report)| report).collect();
        let by_mask = |values: Vec<Value>| {
            panels.iter().zip(values).map(|((name, _), v)| (name.to_string(), v)).collect::<Map<_, _>>()
        };
        let histograms = prefix::histograms(&plain).iter().map(|h| json!(h)).collect();
        session.finish(json!({
            "file": self.triples, "triples": triples,
            "reports": by_mask(plain.iter().map(|r| json!(r)).collect()), "histograms": by_mask(histograms),
        }))?;
        print(&table(&triples, &panels))
    }
}

/// The triples, then what each mask makes of all.
fn table(triples: &[prefix::Triple], panels: &[(&str, &prefix::Report)]) -> String {
    let heads = |name: &str| [format!("{name} q s+"), format!("{name} q s-")];
    let mut rows: Vec<Vec<String>> = vec![vec!["prefix".into()]];
    rows[0].extend(panels.iter().flat_map(|(name, _)| heads(name)));
    for (i, triple) in triples.iter().enumerate() {
        let figures = panels.iter().map(|(_, report)| report.triples[i]);
        let figures = figures.flat_map(|c| [c.positive, c.negative]).map(prefix::figure);
        rows.push([triple.prefix.clone()].into_iter().chain(figures).collect());
    }
    let mut all =
        vec![["attention", "separated", "mean q s+", "mean q s-", "difference"].map(String::from).to_vec()];
    for (name, r) in panels {
        let separated = format!("{} of {}", r.separated, r.triples.len());
        let figures = [r.mean_positive, r.mean_negative, r.mean_difference].map(prefix::figure);
        all.push([name.to_string(), separated].into_iter().chain(figures).collect());
    }
    format!("{}\n{}", aligned(&rows), aligned(&all))
}
