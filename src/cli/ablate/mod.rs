//! `llm2vec ablate`: the paper's ablation, every variant trained and evaluated, by one command.

mod chart;
mod evaluator;
mod flags;
mod plan;
mod record;
mod report;
mod work;

use crate::cli::lists::paths;
use crate::cli::{print, say, signal};
use crate::error::{Error, Result};
use crate::eval::suite::{self, Set};
use crate::eval::words::task::WordTask;
use crate::format::atomic;
use crate::train::config::Stage;
pub use flags::Ablate;
use plan::{Plan, Section, Task, VARIANTS, Variant};
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
        let device = self.kernels.open(&self.device)?;
        let record = Record::open(&self.output, &settings)?;
        let work = Work::new(&self, &plan, &record, configs, device, signal::stop_flag()?);
        work.run()?;

        let tables = plan.sections.iter().map(|section| Table::new(&plan, section, &record));
        let tables = tables.collect::<Result<Vec<_>>>()?;
        let trained = work.trained()?;
        let json = json!({ "settings": settings, "sections": tables, "trained": trained });
        atomic::write_json(&record.path.join("results.json"), &json)?;
        let summaries: Vec<String> = tables.iter().map(Table::summary).collect();
        let whole: Vec<String> = tables.iter().map(Table::whole).collect();
        atomic::write(&record.path.join("table.md"), whole.join("\n").as_bytes())?;
        for table in &tables {
            chart::draw(&record.path.join(table.plot), table)?;
        }
        print(&summaries.join("\n"))?;
        if !self.quiet {
            let (path, plots) = (record.path.display(), tables.iter().map(|table| table.plot));
            let plots = plots.collect::<Vec<_>>().join(", ");
            say(format_args!("{path}: table.md (every task), results.json, {plots}; adapters in seed-N"));
        }
        Ok(())
    }

    /// The variants whose data is given, and the tasks.
    fn plan(&self) -> Result<Plan> {
        let sections = [self.sentences()?, self.word_section()?];
        let sections = sections.into_iter().filter(|section| !section.tasks.is_empty()).collect();
        let repeated =
            |list: &[u64]| list.iter().enumerate().find(|(i, s)| list[..*i].contains(s)).map(|(_, s)| *s);
        if let Some(seed) = repeated(&self.seeds) {
            return Err(Error::usage(format!("--seeds: {seed} stands there twice")));
        }
        let with_data = |v: &&Variant| v.chain().iter().all(|training| self.data(training.stage).is_some());
        let (variants, without): (Vec<_>, Vec<_>) = VARIANTS.iter().partition(with_data);
        if !without.is_empty() && !self.quiet {
            let names: Vec<&str> = without.iter().map(|v: &&Variant| v.name).collect();
            say(format_args!("left out for want of --mntp, --simcse or --supervised: {}", names.join(", ")));
        }
        Ok(Plan { variants, seeds: self.seeds.clone(), sections })
    }

    fn sentences(&self) -> Result<Section> {
        let mut sets: Vec<Set> = Vec::new();
        for path in &paths(&self.tasks) {
            sets.extend(suite::sets(path)?);
        }
        sets.sort_by_key(|set| set.kind);
        let tasks: Vec<Task> = sets.into_iter().map(Task::Sentences).collect();
        check_ids("--tasks", &tasks)?;
        let mut poolings = Vec::new();
        for pooling in self.pooling.iter().copied().map(Some) {
            if !poolings.contains(&pooling) {
                poolings.push(pooling);
            }
        }
        Ok(Section { name: "sentences", plot: "plot.svg", tasks, poolings })
    }

    fn word_section(&self) -> Result<Section> {
        let read = |argument: &String| Ok(Task::Words(Box::new(WordTask::read(argument)?)));
        let tasks = self.words.words.iter().map(read).collect::<Result<Vec<_>>>()?;
        check_ids("--words", &tasks)?;
        let rate = self.words.probe().rate;
        if !rate.is_finite() || rate < 0.0 {
            return Err(Error::usage(format!("--words-lr {rate}: a number from 0 on was wanted, as 5e-4")));
        }
        Ok(Section { name: "words", plot: "words.svg", tasks, poolings: vec![None] })
    }
}

/// Refuses two tasks of one name, whose figures would be of one file.
fn check_ids(flag: &str, tasks: &[Task]) -> Result<()> {
    for (i, task) in tasks.iter().enumerate() {
        if let Some(other) = tasks[..i].iter().find(|other| other.id() == task.id()) {
            let (id, one, two) = (task.id(), other.path().display(), task.path().display());
            let what = format!("{flag}: {one} and {two} are both {id}; give one, or rename a folder");
            return Err(Error::usage(what));
        }
    }
    Ok(())
}
