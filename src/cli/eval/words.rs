//! `llm2vec eval words`: a linear probe on the words of a frozen model.

mod config;
mod table;

pub use config::Words;

use super::layers;
use crate::cli::info::tell;
use crate::cli::lists::{Listed, paths};
use crate::cli::progress::Tally;
use crate::cli::{FLAGS, KernelSetFlags, ModelFlags, extractor, print, say};
use crate::encode::tokens::WordPooling;
use crate::encode::words::{LabelPosition, WordRows};
use crate::error::{Error, Result};
use crate::eval::probe;
use crate::eval::words::data::{DataSet, Files};
use crate::eval::words::features::Extractor;
use crate::eval::words::{self, Features, Report, plot};
use crate::format::atomic;
use crate::pretrained::open::{Options, Setup};
use crate::train::progress::Progress;
use clap::Args;
use clap::builder::BoolishValueParser;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;

/// Word-level tasks (chunking, NER, POS): a linear probe on the frozen model's words; accuracy, and precision, recall and F1 as seqeval's.
#[derive(Args)]
#[command(
    mut_arg("model", |arg| arg.required(false).default_value("").hide_default_value(true)),
    after_help = "Examples:
  llm2vec eval words -m DIR --data FOLDER --label ner -o scores.json     # train.…, dev.…, test.… in FOLDER
  llm2vec eval words -m DIR --data word/ud-ewt --label upos              # ud-ewt.train.…, ud-ewt.dev.…
  llm2vec eval words -m DIR --adapter mntp --train eng.train --test eng.testb --label chunk --cache features
  llm2vec eval words -m DIR --data FOLDER --label ner --layers all --plot layers.svg
  llm2vec eval words --config train_configs/word-task/Mistral-bi-mntp.json --data conll2003   # the reference's own
Files: columns (CoNLL-2003: word, pos, chunk, ner; or any, by number from 1), .conllu, or .jsonl of {\"tokens\": […], \"ner\": […]};
.gz and .zst too. Words of --vectors are those of the training, the validation and the test file, one row each."
)]
pub struct Flags {
    #[command(flatten)]
    model: ModelFlags,
    /// A JSON configuration of the reference's (train_configs/word-task, test_configs/word-task); flags win over it
    #[arg(long, env = "LLM2VEC_CONFIG", value_name = "FILE.json")]
    config: Option<PathBuf>,
    /// Folder with train, dev and test files, or FOLDER/NAME where their names begin with NAME
    #[arg(long, env = "LLM2VEC_DATA", value_name = "PATH", conflicts_with_all = ["train", "validation", "test"],
        required_unless_present_any = ["train", "config"])]
    data: Option<PathBuf>,
    /// Instead of --data: the file to learn from
    #[arg(long, env = "LLM2VEC_TRAIN", value_name = "FILE", requires = "test")]
    train: Option<PathBuf>,
    /// Instead of --data: a file that is measured too
    #[arg(long, env = "LLM2VEC_VALIDATION", value_name = "FILE", requires = "train")]
    validation: Option<PathBuf>,
    /// Instead of --data: the file to answer
    #[arg(long, env = "LLM2VEC_TEST", value_name = "FILE")]
    test: Option<PathBuf>,
    /// Which tags: pos, chunk, ner, upos, xpos, a column's number, a key of the JSON [default: the only one]
    #[arg(long, env = "LLM2VEC_LABEL", value_name = "NAME")]
    label: Option<String>,
    /// Which states stand for a word: its tokens', or those one token earlier, as MNTP trains them [default: before if an adapter is MNTP's, else same]
    #[arg(long, env = "LLM2VEC_LABEL_POSITION", value_name = "PLACE")]
    label_position: Option<LabelPosition>,
    /// The features of a word of several tokens: the first's, the last's, or their mean
    #[arg(long, env = "LLM2VEC_WORD_POOLING", default_value = "mean", value_name = "MODE")]
    word_pooling: WordPooling,
    /// Take the states after block N: 0 is the embedding, -1 the last, which alone has the final norm [default: -1]
    #[arg(long, env = "LLM2VEC_LAYER", value_name = "N", allow_negative_numbers = true)]
    layer: Option<i64>,
    /// A probe for each of several layers, whose features one pass makes: 0-4,8,-1 or all
    #[arg(long, env = "LLM2VEC_LAYERS", value_name = "LIST", allow_hyphen_values = true, conflicts_with_all = ["layer", "vectors"])]
    layers: Option<String>,
    /// Keep features in this folder and find them there again
    #[arg(long, env = "LLM2VEC_CACHE", value_name = "DIR", conflicts_with = "vectors")]
    cache: Option<PathBuf>,
    /// Instead of a model: features made by any program, .npy or .safetensors, a row for each word; repeat for several files, read as one
    #[arg(long, env = "LLM2VEC_VECTORS", value_name = "FILE")]
    vectors: Vec<Listed>,
    #[command(flatten)]
    kernels: KernelSetFlags,
    #[command(flatten)]
    probe: probe::Options,
    /// Scores by class, confusion, settings and all as JSON
    #[arg(short, long, env = "LLM2VEC_OUTPUT", value_name = "FILE.json")]
    output: Option<PathBuf>,
    /// What has set the label position, where it was no flag.
    #[arg(skip)]
    position_by: Option<String>,
    /// The folder of the scores, to be made.
    #[arg(skip)]
    folder: Option<PathBuf>,
    /// Draw accuracy and F1 by layer
    #[arg(long, env = "LLM2VEC_PLOT", value_name = "FILE.svg", requires = "layers")]
    plot: Option<PathBuf>,
    /// No progress, no summary
    #[arg(short, long, env = "LLM2VEC_QUIET", value_parser = BoolishValueParser::new())]
    quiet: bool,
}

impl Flags {
    /// Runs the command.
    fn run(self) -> Result<()> {
        let files = match (&self.data, &self.train, &self.test) {
            (Some(data), ..) => Files::find(data)?,
            (None, Some(train), Some(test)) => {
                Files { train: train.clone(), validation: self.validation.clone(), test: test.clone() }
            }
            _ => return Err(Error::usage("no data: give --data FOLDER, or --train FILE and --test FILE")),
        };
        let data = DataSet::read(&files, self.label.as_deref())?;
        self.check_outputs(&data)?;
        let mut head = json!({
            "task": "words", "config": self.config, "data": words::paths(&data), "label": data.train.label,
            "probe": self.probe,
        });
        let features = if self.vectors.is_empty() {
            self.by_model(&data, &mut head)?
        } else {
            let files = paths(&self.vectors);
            head["vectors"] = json!(files);
            (vec![words::from_files(&data, &files)?], None)
        };
        // The extractor's temporary folder lives as long as the features.
        let (features, _extractor) = features;
        let report = self.trained(&data, &features)?;
        self.finish(head, &report)
    }

    /// Refuses, before any work, what cannot be written or would overwrite what is read.
    fn check_outputs(&self, data: &DataSet) -> Result<()> {
        if let Some(dir) = &self.folder {
            std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
        }
        for (flag, path) in [("--output", &self.output), ("--plot", &self.plot)] {
            let Some(path) = path else { continue };
            let vectors = paths(&self.vectors);
            let vectors = vectors.iter().map(PathBuf::as_path);
            if words::paths(data).into_iter().chain(vectors).any(|read| atomic::same_file(read, path)) {
                let what = "is one of the files read; give another name";
                return Err(Error::usage(format!("{flag} {} {what}", path.display())));
            }
            atomic::beside(path)?;
        }
        Ok(())
    }

    fn by_model(&self, data: &DataSet, head: &mut Value) -> Result<(Vec<Features>, Option<Extractor>)> {
        self.model.check_states()?;
        let mut options = Options { layer: self.layer, ..self.model.options()? };
        if options.model.is_empty() {
            return Err(Error::usage("nothing to evaluate: give a model (--model DIR) or --vectors FILE"));
        }
        options.device = self.kernels.apply(&self.model.device, options.device)?;
        let mut setup = extractor::setup(&mut options)?;
        let list = match &self.layers {
            Some(list) => layers::parse(list, setup.config.layers)?,
            None => vec![setup.config.layers],
        };
        if self.layers.is_some() && list.last().is_some_and(|last| *last < setup.config.layers) {
            options.layer = list.last().map(|last| *last as i64);
            setup = Setup::open(&options)?;
        }
        tell(&setup, self.quiet);
        let (position, why) = match self.label_position {
            Some(asked) => (asked, self.position_by.clone().unwrap_or("by --label-position".into())),
            None => extractor::position(&setup),
        };
        if !self.quiet {
            say(format_args!("label position: {}, {why}", position.name()));
        }
        let rows = WordRows { layers: list, pooling: self.word_pooling, position };
        head["model"] = json!(setup.dir);
        head["adapters"] = json!(options.adapters);
        head["settings"] = json!(setup.settings());
        head["label_position"] = json!(position.name());
        head["word_pooling"] = json!(format!("{:?}", self.word_pooling).to_lowercase());

        let tally = Rc::new(RefCell::new(Tally::new(self.quiet)));
        let added = Rc::clone(&tally);
        let progress = move |texts, tokens| added.borrow_mut().add(texts, tokens);
        let mut extractor = extractor::of_model(setup, self.cache.as_deref(), rows, progress)?;
        let features = words::extracted(data, &mut extractor)?;
        extractor.notes.iter().for_each(|note| say(format_args!("warning: {note}")));
        match extractor.loaded() {
            true => tally.borrow().finish(),
            false => tally.borrow().clear(),
        }
        if !extractor.loaded() && !self.quiet {
            say("all features were in the cache");
        }
        Ok((features, Some(extractor)))
    }

    fn trained(&self, data: &DataSet, features: &[Features]) -> Result<Report> {
        let (shown, layers) = (Progress::spinner(self.quiet), features.len());
        let report = words::run(data, features, self.probe, |done, step, all, loss| {
            if step % 50 == 0 {
                shown.message(&format!("probe {}/{layers}: step {step}/{all}, loss {loss:.4}", done + 1));
            }
        });
        shown.finish();
        report
    }

    fn finish(&self, mut head: Value, report: &Report) -> Result<()> {
        report.warnings().iter().for_each(|w| say(format_args!("warning: {}", w.spelled(FLAGS))));
        if let Some(output) = &self.output {
            head["report"] = json!(report);
            atomic::write_json(output, &head)?;
        }
        if let Some(path) = &self.plot {
            plot::draw(path, report)?;
        }
        print(&table::table(report))
    }
}
