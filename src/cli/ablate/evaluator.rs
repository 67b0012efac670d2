//! The encoder of a variant, opened once for the tasks that follow one another.

use super::flags::Ablate;
use super::plan::{Source, Task};
use crate::cli::{FLAGS, extractor};
use crate::encode::Encoder;
use crate::encode::tokens::WordPooling;
use crate::encode::words::WordRows;
use crate::error::Result;
use crate::eval::instructions::{self, Instruction};
use crate::eval::scores::Scores;
use crate::eval::source::Vectors;
use crate::eval::suite::Set;
use crate::eval::words::features::Extractor;
use crate::eval::words::task::WordTask;
use crate::pretrained::open::Options;
use crate::train::progress::Progress;

/// Opens nothing before the first task.
pub struct Evaluator {
    /// What it is of.
    pub source: Source,
    options: Options,
    vectors: Option<Vectors>,
    /// With the features of all words so far: another label of the same words costs no pass.
    extractor: Option<Extractor>,
}

impl Evaluator {
    /// Of a source, which these options open.
    pub fn new(source: Source, options: Options) -> Evaluator {
        Evaluator { source, options, vectors: None, extractor: None }
    }

    /// The figures of a task; `warn` is told what a user should know.
    pub fn scores(&mut self, task: &Task, flags: &Ablate, warn: &dyn Fn(String)) -> Result<Scores> {
        match task {
            Task::Sentences(set) => self.sentences(set, flags, warn),
            Task::Words(words) => self.words(words, flags, warn),
        }
    }

    fn sentences(&mut self, set: &Set, flags: &Ablate, warn: &dyn Fn(String)) -> Result<Scores> {
        let file = flags.instructions.as_deref();
        let instruction =
            file.map_or_else(|| Ok(Instruction::default()), |file| instructions::of_file(file, &set.name))?;
        let vectors = match &mut self.vectors {
            Some(open) => open,
            none => {
                let encoder = Encoder::open(&self.options)?;
                encoder.setup.warnings.iter().for_each(|w| warn(w.clone()));
                none.insert(Vectors::model(encoder, flags.empty, |_, _| {}))
            }
        };
        let shown = Progress::spinner(flags.quiet);
        shown.message(&set.id());
        let scores = set.run(vectors, &instruction);
        shown.finish();
        scores
    }

    fn words(&mut self, task: &WordTask, flags: &Ablate, warn: &dyn Fn(String)) -> Result<Scores> {
        let extractor = match &mut self.extractor {
            Some(open) => open,
            none => {
                let setup = extractor::setup(&mut self.options)?;
                setup.warnings.iter().for_each(|w| warn(w.clone()));
                let rows = WordRows {
                    layers: vec![setup.config.layers],
                    pooling: WordPooling::Mean,
                    position: flags.words.label_position.unwrap_or_else(|| extractor::position(&setup).0),
                };
                none.insert(extractor::of_model(setup, None, rows, |_, _| {})?)
            }
        };
        let shown = Progress::spinner(flags.quiet);
        shown.message(&format!("{}: features", task.id()));
        let run = task.run(extractor, flags.words.probe(), |step, all, loss| {
            if step % 50 == 0 {
                shown.message(&format!("{}: step {step}/{all}, loss {loss:.4}", task.id()));
            }
        });
        shown.finish();
        let (report, scores) = run?;
        report.warnings().iter().for_each(|w| warn(format!("{}: {}", task.id(), w.spelled(FLAGS))));
        Ok(scores)
    }
}
