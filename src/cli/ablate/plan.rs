//! What an ablation consists of: the paper's variants, the adapters that they share, and every step in its order.

use crate::eval::suite::{Kind, Set};
use crate::eval::words::task::WordTask;
use crate::model::config::Attention;
use crate::pretrained::pooling::PoolingMode;
use crate::train::config::Stage;
use std::path::Path;

/// An adapter, trained once for each seed.
#[derive(Debug, PartialEq, Eq)]
pub struct Training {
    /// Its folder's name.
    pub name: &'static str,
    /// What trains it.
    pub stage: Stage,
    /// The mask that it is trained with.
    pub attention: Attention,
    /// The adapter that it stands on.
    pub below: Option<&'static Training>,
}

static MNTP: Training =
    Training { name: "mntp", stage: Stage::Mntp, attention: Attention::Full, below: None };
static UNI_SIMCSE: Training =
    Training { name: "uni-simcse", stage: Stage::Simcse, attention: Attention::Causal, below: None };
static BI_SIMCSE: Training =
    Training { name: "bi-simcse", stage: Stage::Simcse, attention: Attention::Full, below: None };
static MNTP_SIMCSE: Training =
    Training { name: "mntp-simcse", stage: Stage::Simcse, attention: Attention::Full, below: Some(&MNTP) };
static MNTP_SUPERVISED: Training = Training {
    name: "mntp-supervised",
    stage: Stage::Supervised,
    attention: Attention::Full,
    below: Some(&MNTP),
};

/// A row of the paper's tables.
#[derive(Debug, PartialEq, Eq)]
pub struct Variant {
    /// As the paper has it.
    pub name: &'static str,
    /// The same for a folder.
    pub folder: &'static str,
    /// Its mask.
    pub attention: Attention,
    /// Its last adapter; none where nothing is trained.
    pub top: Option<&'static Training>,
}

/// Tables 4 and 5, and the supervised model of table 2 that stands on MNTP alone.
pub static VARIANTS: [Variant; 7] = [
    Variant { name: "Uni", folder: "uni", attention: Attention::Causal, top: None },
    Variant { name: "Bi", folder: "bi", attention: Attention::Full, top: None },
    Variant { name: "Bi+MNTP", folder: "bi-mntp", attention: Attention::Full, top: Some(&MNTP) },
    Variant {
        name: "Uni+SimCSE",
        folder: "uni-simcse",
        attention: Attention::Causal,
        top: Some(&UNI_SIMCSE),
    },
    Variant { name: "Bi+SimCSE", folder: "bi-simcse", attention: Attention::Full, top: Some(&BI_SIMCSE) },
    Variant {
        name: "Bi+MNTP+SimCSE",
        folder: "bi-mntp-simcse",
        attention: Attention::Full,
        top: Some(&MNTP_SIMCSE),
    },
    Variant {
        name: "Bi+MNTP+supervised",
        folder: "bi-mntp-supervised",
        attention: Attention::Full,
        top: Some(&MNTP_SUPERVISED),
    },
];

impl Training {
    /// The adapters from the model up, this one the last.
    pub fn chain(&'static self) -> Vec<&'static Training> {
        let mut chain = self.below.map_or(Vec::new(), Training::chain);
        chain.push(self);
        chain
    }
}

impl Variant {
    /// The adapters from the model up.
    pub fn chain(&self) -> Vec<&'static Training> {
        self.top.map_or(Vec::new(), Training::chain)
    }

    /// The seeds that it is evaluated with; without training there is no chance in it.
    pub fn seeds(&self, all: &[u64]) -> Vec<Option<u64>> {
        match self.top {
            None => vec![None],
            Some(_) => all.iter().map(|seed| Some(*seed)).collect(),
        }
    }

    /// `Bi+MNTP, seed 3`.
    pub fn title(&self, seed: Option<u64>) -> String {
        seed.map_or(self.name.into(), |seed| format!("{}, seed {seed}", self.name))
    }
}

/// What an encoder is scored on.
#[derive(Debug)]
pub enum Task {
    /// A set of sentences, which have vectors.
    Sentences(Set),
    /// Tagged words, which have features.
    Words(Box<WordTask>),
}

impl Task {
    /// `sts/stsb.test`, `ud-ewt/chunk`: no two of a section are the same.
    pub fn id(&self) -> String {
        match self {
            Task::Sentences(set) => set.id(),
            Task::Words(words) => words.id(),
        }
    }

    /// The head of its column: for words with the figure that counts, which is not the same for all.
    pub fn head(&self) -> String {
        match self {
            Task::Sentences(set) => set.id(),
            Task::Words(words) if words.data.spans => format!("{}, F1", words.id()),
            Task::Words(words) => format!("{}, accuracy", words.id()),
        }
    }

    /// The type of a set of sentences.
    pub fn kind(&self) -> Option<Kind> {
        match self {
            Task::Sentences(set) => Some(set.kind),
            Task::Words(_) => None,
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        match self {
            Task::Sentences(set) => &set.path,
            Task::Words(words) => &words.path,
        }
    }
}

/// Tasks with the poolings that they are evaluated by: a table of the report, and a picture.
#[derive(Debug)]
pub struct Section {
    /// What the tasks are of.
    pub name: &'static str,
    /// The picture's file.
    pub plot: &'static str,
    /// The tasks.
    pub tasks: Vec<Task>,
    /// The poolings; of words, whose features have none, a single `None`.
    pub poolings: Vec<Option<PoolingMode>>,
}

/// All that an ablation evaluates.
#[derive(Debug)]
pub struct Plan {
    /// The rows.
    pub variants: Vec<&'static Variant>,
    /// The seeds of what is trained.
    pub seeds: Vec<u64>,
    /// The tables: of the tasks on sentences, and of those on words.
    pub sections: Vec<Section>,
}

/// One encoder: what a variant gives with a seed and a pooling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// The variant.
    pub variant: &'static Variant,
    /// The seed of its training, if it had one.
    pub seed: Option<u64>,
    /// The pooling of sentences; none for words.
    pub pooling: Option<PoolingMode>,
}

impl Source {
    /// The pooling, or that it is of words.
    pub fn level(&self) -> &'static str {
        self.pooling.map_or("words", PoolingMode::name)
    }
}

/// A step of the work.
#[derive(Clone, Copy, Debug)]
pub enum Step<'a> {
    /// Trains an adapter.
    Train(&'static Training, u64),
    /// Scores an encoder on one task.
    Score(Source, &'a Task),
}

impl Plan {
    /// Every step, each adapter before the first that stands on it. What needs no training comes first: a task whose data is
    /// bad is known after a minute.
    pub fn steps(&self) -> Vec<Step<'_>> {
        let mut steps = Vec::new();
        let untrained = self.variants.iter().filter(|v| v.top.is_none());
        untrained.for_each(|v| self.scores(v, None, &mut steps));
        for &seed in &self.seeds {
            let mut trained: Vec<&str> = Vec::new();
            for variant in self.variants.iter().filter(|v| v.top.is_some()) {
                for training in variant.chain() {
                    if !trained.contains(&training.name) {
                        trained.push(training.name);
                        steps.push(Step::Train(training, seed));
                    }
                }
                self.scores(variant, Some(seed), &mut steps);
            }
        }
        steps
    }

    fn scores<'a>(&'a self, variant: &'static Variant, seed: Option<u64>, steps: &mut Vec<Step<'a>>) {
        for section in &self.sections {
            for &pooling in &section.poolings {
                let source = Source { variant, seed, pooling };
                steps.extend(section.tasks.iter().map(|task| Step::Score(source, task)));
            }
        }
    }
}
