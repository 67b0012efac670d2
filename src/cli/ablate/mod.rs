//! `llm2vec ablate`: the paper's ablation, every variant trained and evaluated, by one command.

mod chart;
mod flags;
mod plan;
mod record;
mod report;
mod work;

use crate::cli::{print, say, signal};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::eval::suite::{self, Set};
use crate::format::atomic;
use crate::pretrained::pooling::PoolingMode;
use crate::train::config::Stage;
pub use flags::Ablate;
use plan::{Plan, Section, VARIANTS, Variant};
use record::Record;
use report::Table;
use serde_json::json;
use work::Work;

impl Ablate {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let plan = self.plan()?;
        let configs = [Stage::Mntp, Stage::Simcse, Stage::Supervised].map(|stage| self.config(stage));
        let [mntp, simcse, supervised] = configs;
        let configs = [mntp?, simcse?, supervised?];
        let settings = self.settings(&configs, &plan);
        let device = self.kernels.apply(Device::by_name(&self.device)?)?;
        let record = Record::open(&self.output, &settings)?;
        let work = Work::new(&self, &plan, &record, configs, device, signal::stop_flag()?);
        work.run()?;

        let tables = plan.sections.iter().map(|section| Table::new(&plan, section, &record));
        let tables = tables.collect::<Result<Vec<_>>>()?;
        let trained = work.trained()?;
        let json = json!({ "settings": settings, "sections": tables, "trained": trained });
        atomic::write_json(&record.path.join("results.json"), &json)?;
        let summaries: Vec<String> = tables.iter().map(Table::summary).collect();
        let whole = |(table, summary): (&Table, &String)| format!("{summary}\n{}", table.by_task());
        let whole: Vec<String> = tables.iter().zip(&summaries).map(whole).collect();
        atomic::write(&record.path.join("table.md"), whole.join("\n").as_bytes())?;
        for table in &tables {
            chart::draw(&record.path.join(table.plot), table)?;
        }
        print(&summaries.join("\n"))?;
        if !self.quiet {
            let path = record.path.display();
            say(format_args!("{path}: table.md (every task), results.json, plot.svg; adapters in seed-N"));
        }
        Ok(())
    }

    /// The variants whose data is given, and the tasks.
    fn plan(&self) -> Result<Plan> {
        let mut tasks: Vec<Set> = Vec::new();
        for path in &self.tasks {
            tasks.extend(suite::sets(path)?);
        }
        tasks.sort_by_key(|task| task.kind);
        for (i, task) in tasks.iter().enumerate() {
            if let Some(other) = tasks[..i].iter().find(|other| other.id() == task.id()) {
                let (id, one, two) = (task.id(), other.path.display(), task.path.display());
                return Err(Error::usage(format!(
                    "--tasks: {one} and {two} are both {id}; give one, or rename a folder"
                )));
            }
        }
        let repeated =
            |list: &[u64]| list.iter().enumerate().find(|(i, s)| list[..*i].contains(s)).map(|(_, s)| *s);
        if let Some(seed) = repeated(&self.seeds) {
            return Err(Error::usage(format!("--seeds: {seed} stands there twice")));
        }
        let mut poolings: Vec<PoolingMode> = Vec::new();
        for pooling in &self.pooling {
            if !poolings.contains(pooling) {
                poolings.push(*pooling);
            }
        }
        let with_data = |v: &&Variant| v.chain().iter().all(|training| self.data(training.stage).is_some());
        let (variants, without): (Vec<_>, Vec<_>) = VARIANTS.iter().partition(with_data);
        if !without.is_empty() && !self.quiet {
            let names: Vec<&str> = without.iter().map(|v: &&Variant| v.name).collect();
            say(format_args!("left out for want of --mntp, --simcse or --supervised: {}", names.join(", ")));
        }
        // Here a list of word tasks would be a second section.
        let sentences = Section { name: "sentences", plot: "plot.svg", tasks, poolings };
        Ok(Plan { variants, seeds: self.seeds.clone(), sections: vec![sentences] })
    }
}
