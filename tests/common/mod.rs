//! What several test files share: where data is, and a model in memory without text or files of its own.
#![allow(dead_code)] // each test file uses its own part

use llm2vec::device::Device;
use llm2vec::format::hf;
use llm2vec::format::peft::{self, Adapter, AdapterConfig, Pair};
use llm2vec::memory::Arena;
use llm2vec::model::Model;
use llm2vec::model::config::Config;
use llm2vec::model::state::{Keep, State};
use llm2vec::model::weights::Storage;
use llm2vec::ops::attention::Mask;
use llm2vec::pretrained::files::ModelFiles;
use llm2vec::pretrained::names::Located;
use llm2vec::rng::normal;
use llm2vec::train::learner::{Head, Learner, Size};
use std::path::{Path, PathBuf};

/// The projections of a block.
pub const MODULES: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// A path below the repository; `LLM2VEC_ROOT` names another folder that has the same files (a pack for a GPU machine).
pub fn here(path: &str) -> PathBuf {
    let root = std::env::var_os("LLM2VEC_ROOT").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&root).join(path)
}

/// How much of a campaign to run: a number in the environment, or that of every day.
pub fn amount(variable: &str, every_day: usize) -> usize {
    std::env::var(variable).map_or(every_day, |n| n.parse().expect(variable))
}

/// The small model that ships with the repository.
pub fn novel5m() -> PathBuf {
    here("tests/models/novel5m")
}

/// The five tiny golden models, and the small one that ships with the repository.
pub fn models() -> Vec<PathBuf> {
    let mut list: Vec<PathBuf> =
        std::fs::read_dir(here("tests/golden")).unwrap().map(|e| e.unwrap().path()).collect();
    list.retain(|p| p.join("model").is_dir());
    list.sort();
    list.iter().map(|p| p.join("model")).chain([novel5m()]).collect()
}

/// The configuration of a folder.
pub fn config(dir: &Path) -> Config {
    Config::parse(&hf::read_json(&dir.join("config.json")).unwrap()).unwrap()
}

/// Writes a random adapter of rank 4 on every projection of `config` into `dir`.
pub fn random_adapter(dir: &Path, config: &Config, seed: u64) {
    let floats = |seed, n, scale: f64| normal(seed, n).iter().map(|v| (v * scale) as f32).collect();
    let places = (0..config.layers).flat_map(|layer| config.projections().map(|p| (layer, p)));
    let pairs = places.zip((seed << 32..).step_by(2)).map(|((layer, p), seed)| Pair {
        layer,
        module: p.module.into(),
        rank: 4,
        scale: 2.0,
        a: floats(seed, 4 * p.cols, (p.cols as f64).powf(-0.5)),
        b: floats(seed + 1, p.rows * 4, 0.1),
        inputs: p.cols,
        outputs: p.rows,
    });
    let config = AdapterConfig {
        r: 4,
        lora_alpha: 8.0,
        use_rslora: false,
        target_modules: Vec::new(),
        rank_pattern: Default::default(),
        alpha_pattern: Default::default(),
        base_model_name_or_path: None,
        lora_dropout: 0.0,
    };
    peft::save(dir, &Adapter { config, dir: dir.into(), pairs: pairs.collect() }).unwrap();
}

/// A folder's model with its buffers, every stream kept.
pub struct Loaded {
    model: Model,
    state: State,
}

impl std::ops::Deref for Loaded {
    type Target = Model;

    fn deref(&self) -> &Model {
        &self.model
    }
}

/// Tokens that a test's batch may have.
const TOKENS: usize = 4096;

impl Loaded {
    /// Loads a folder; `merged` adapters go into the weights, `live` stays beside them.
    pub fn load(dir: &Path, device: Device, merged: &[PathBuf], live: Option<&Path>) -> Loaded {
        Loaded::stored(dir, device, Storage::Real, merged, live)
    }

    /// Likewise, the large matrices kept as `storage` says.
    pub fn stored(
        dir: &Path,
        device: Device,
        storage: Storage,
        merged: &[PathBuf],
        live: Option<&Path>,
    ) -> Loaded {
        let config = config(dir);
        let (files, _) =
            ModelFiles::open(&at(dir), &config, &merged.iter().map(|m| at(m)).collect::<Vec<_>>()).unwrap();
        let mut arena = Arena::new(&device);
        let mut model = Model::new(&mut arena, &config, Mask::Full, storage, 1024);
        model.load(&files).unwrap();
        let mut rank = 0;
        if let Some(live) = live {
            let (files, _) = ModelFiles::open(&at(dir), &config, &[at(live)]).unwrap();
            rank = files.rank(0);
            model.weights.attach(&mut arena, rank, files.adapter(0));
        }
        let state = State::new(&mut arena, &config, TOKENS, rank, Keep::Streams);
        Loaded { model, state }
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
        self.model.mask = mask;
        self.model.forward(&mut self.state, None).unwrap();
        let (all, c) = (self.state.hidden.to_f64(), self.config.width);
        starts.windows(2).map(|w| all[w[0] as usize * c..w[1] as usize * c].to_vec()).collect()
    }

    /// The streams before each block, of the last batch: `[N, C]` each.
    pub fn streams(&self) -> Vec<Vec<f64>> {
        self.state.streams.iter().map(|t| t.to_f64()).collect()
    }
}

/// A folder, as the library names one.
pub fn at(dir: &Path) -> Located {
    Located::folder(dir)
}

/// A learner with a random adapter live on these projections of a folder's model.
pub fn learner(
    dir: &Path,
    device: &Device,
    modules: &[&str],
    mask: Mask,
    keep: Keep,
    tokens: usize,
) -> (Learner, Arena) {
    learner_with(dir, device, modules, mask, keep, tokens, Head::None)
}

/// Likewise, with this head.
#[allow(dead_code)] // of one test binary
pub fn learner_with(
    dir: &Path,
    device: &Device,
    modules: &[&str],
    mask: Mask,
    keep: Keep,
    tokens: usize,
    head: Head,
) -> (Learner, Arena) {
    let (config, adapter) = (config(dir), tempfile::tempdir().unwrap());
    random_adapter(adapter.path(), &config, 9);
    let (files, _) = ModelFiles::open(&at(dir), &config, &[]).unwrap();
    let (live, _) = ModelFiles::open(&at(dir), &config, &[at(adapter.path())]).unwrap();
    let (rank, storage) = (live.rank(0), Storage::Real);
    let size = Size { tokens, positions: 512, rank, keep, storage, head };
    let mut arena = Arena::new(device);
    let delta = |layer, module: &str| live.adapter(0)(layer, module).filter(|_| modules.contains(&module));
    let mut learner = Learner::new(&mut arena, &config, mask, size, delta);
    learner.load(&files).unwrap();
    (learner, arena)
}

/// The largest absolute difference.
pub fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// The largest difference over the largest value.
pub fn relative(a: &[f64], b: &[f64]) -> f64 {
    distance(a, b) / b.iter().fold(f64::MIN_POSITIVE, |most, v| most.max(v.abs()))
}
