//! What several test files share: where data is, and a model in memory without text or files of its own.
#![allow(dead_code)] // each test file uses its own part

use llm2vec::device::Device;
use llm2vec::encode::files::ModelFiles;
use llm2vec::format::hf;
use llm2vec::memory::Arena;
use llm2vec::model::config::Config;
use llm2vec::model::llama::Decoder;
use llm2vec::model::rope::RopeTables;
use llm2vec::model::state::{Keep, State};
use llm2vec::model::weights::{Storage, Weights};
use llm2vec::ops::attention::Mask;
use std::path::{Path, PathBuf};

/// A path below the repository.
pub fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The small model that ships with the repository.
pub fn novel5m() -> PathBuf {
    here("tests/models/novel5m")
}

/// A model with its buffers, every stream kept.
pub struct Model {
    pub device: Device,
    pub config: Config,
    pub weights: Weights,
    rope: RopeTables,
    state: State,
}

/// Tokens that a test's batch may have.
const TOKENS: usize = 4096;

impl Model {
    /// Loads a folder; `merged` adapters go into the weights, `live` stays beside them.
    pub fn load(dir: &Path, device: Device, merged: &[PathBuf], live: Option<&Path>) -> Model {
        let config = Config::parse(&hf::read_json(&dir.join("config.json")).unwrap()).unwrap();
        let (files, _) = ModelFiles::open(dir, &config, merged).unwrap();
        let mut arena = Arena::new(&device);
        let mut weights = Weights::new(&mut arena, &config, Storage::Real);
        weights.load(&config, &files).unwrap();
        let mut rank = 0;
        if let Some(live) = live {
            let (files, _) = ModelFiles::open(dir, &config, &[live.to_path_buf()]).unwrap();
            rank = files.rank(0);
            weights.attach(&mut arena, rank, files.adapter(0));
        }
        let rope = RopeTables::new(&mut arena, &config, 1024);
        let state = State::new(&mut arena, &config, TOKENS, rank, Keep::Streams);
        Model { device, config, weights, rope, state }
    }

    /// Hidden states `[T, C]` of each sequence of one pack.
    pub fn hidden(&mut self, sequences: &[&[i32]], mask: Mask) -> Vec<Vec<f64>> {
        let ids = sequences.concat();
        let mut starts = vec![0];
        starts.extend(sequences.iter().scan(0, |at, s| {
            *at += s.len() as i32;
            Some(*at)
        }));
        self.state.set_batch(&ids, &starts).unwrap();
        let Model { device, config, weights, rope, state } = self;
        Decoder { device, config, weights, rope, mask, noise: None }.forward(state).unwrap();
        let (all, c) = (self.state.hidden.to_f64(), self.config.width);
        starts.windows(2).map(|w| all[w[0] as usize * c..w[1] as usize * c].to_vec()).collect()
    }

    /// The streams before each block, of the last batch: `[N, C]` each.
    pub fn streams(&self) -> Vec<Vec<f64>> {
        self.state.streams.iter().map(|t| t.to_f64()).collect()
    }
}

/// The largest absolute difference.
pub fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}
