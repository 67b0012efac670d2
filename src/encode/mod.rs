//! The encoder: a checkpoint, a tokenizer and settings in; a vector per text out.

pub mod join;
pub mod part;
mod steps;
pub mod texts;
pub mod tokens;
pub mod words;

use crate::device::{DType, Device};
use crate::error::{Result, Setting, message};
use crate::memory::Arena;
use crate::model::Model;
use crate::model::config::Attention;
use crate::model::state::{Keep, State};
use crate::model::weights::Storage;
use crate::ops::l2norm::l2norm_fwd;
use crate::ops::pool::{Pooling, pool_fwd};
use crate::pretrained::open::{Options, Setup};
use crate::pretrained::sentence_transformers::Step;
use crate::tensor::Tensor;
use crate::text::Prompt;
use crate::text::pack::{Pack, pack};

/// Everything that is allocated, once.
pub struct Buffers {
    model: Model,
    state: State,
    pool: Pool,
}

/// What rows of tokens become vectors in.
struct Pool {
    /// [B, C]
    pooled: Tensor,
    /// [B, C]
    unit: Tensor,
    /// [B]
    norm: Tensor,
    /// [B, 2]
    spans: Tensor,
}

impl Setup {
    /// What would be allocated, counted on a planning arena.
    pub fn plan(&self) -> Arena {
        let mut arena = Arena::planning(&self.device);
        self.buffers(&mut arena);
        arena
    }

    /// Everything that is allocated.
    fn buffers(&self, arena: &mut Arena) -> Buffers {
        let (config, tokens) = (&self.config, self.tokens);
        let model = Model::new(arena, config, self.mask, self.storage, self.limits.max_length);
        let mut state = State::new(arena, config, tokens, 0, Keep::Nothing);
        if self.check_finite {
            state.watch(arena, config);
        }
        arena.group("vectors");
        let pool = Pool {
            pooled: arena.statistic(&[tokens, config.width]),
            unit: arena.statistic(&[tokens, config.width]),
            norm: arena.statistic(&[tokens]),
            spans: arena.tensor(DType::I32, &[tokens, 2]),
        };
        Buffers { model, state, pool }
    }
}

/// A loaded model that turns prompts into vectors.
pub struct Encoder {
    /// What it runs.
    #[doc(hidden)]
    pub setup: Setup,
    buffers: Buffers,
}

impl Encoder {
    /// Opens and loads.
    pub fn open(options: &Options) -> Result<Encoder> {
        Encoder::load(Setup::open(options)?)
    }

    /// Plans, refuses what does not fit, and loads.
    #[doc(hidden)]
    pub fn load(setup: Setup) -> Result<Encoder> {
        let (other, value) = match setup.device {
            Device::Cpu(_) => (Setting::Dtype, " bf16"),
            Device::Gpu(_) => (Setting::Device, " cpu"),
        };
        setup.plan().check(message!["a smaller ", Setting::Tokens, ", or ", other, value])?;
        let mut arena = Arena::new(&setup.device);
        let mut buffers = setup.buffers(&mut arena);
        arena.finish()?;
        buffers.model.load(&setup.files)?;
        Ok(Encoder { setup, buffers })
    }

    /// The numbers in a vector: C, or what the modules behind the pooling make of it.
    pub fn width(&self) -> usize {
        self.setup.dimensions()
    }

    /// Has it attend so from now on: the weights are the same under every mask.
    #[doc(hidden)]
    pub fn set_attention(&mut self, attention: Attention) -> Result<()> {
        let mask = self.setup.config.mask(attention)?;
        (self.setup.attention, self.setup.mask, self.buffers.model.mask) = (attention, mask, mask);
        Ok(())
    }

    /// How far cosines may differ by rounding alone where one text's states meet those of a text of another length: by 1e-12
    /// in f32, and by the square of bf16's error, a hundredth, elsewhere; with room.
    #[doc(hidden)]
    pub fn rounding(&self) -> f64 {
        match (&self.setup.device, self.setup.storage) {
            (Device::Cpu(_), Storage::Real | Storage::Bf16) => 1e-9,
            _ => 2e-4,
        }
    }

    /// The ids of a text and the span to pool; an error if nothing is left to pool.
    #[doc(hidden)]
    pub fn prompt(&self, instruction: &str, text: &str) -> Result<Prompt> {
        let prompt = self.setup.prompter.prompt(instruction, text)?;
        self.setup.config.check_ids(prompt.ids.iter().map(|&id| id.into()))?;
        Ok(prompt)
    }

    /// One vector per prompt, in order: row i of `rows` is `[C]` for `prompts[i]`.
    ///
    /// Prompts are sorted by length and packed without padding. On a CPU a text's vector has the same bits whatever its company
    /// and the number of threads, in f32 and in bf16. On a GPU it has them where the text begins at a multiple of
    /// `kernels::attention_fwd::ROWS` rows of its pack, as the first does; elsewhere the keys of
    /// attention are summed in other groups, and vectors agree but for bf16 rounding.
    #[doc(hidden)]
    pub fn encode(
        &mut self,
        prompts: &[Prompt],
        rows: &mut [f32],
        mut progress: impl FnMut(usize, usize),
    ) -> Result<()> {
        let c = self.width();
        let lengths: Vec<usize> = prompts.iter().map(|p| p.ids.len()).collect();
        for items in pack(&lengths, self.setup.tokens) {
            let setup = &self.setup;
            let spans_of = items.iter().map(|&i| Ok((prompts[i].ids.as_slice(), setup.span(&prompts[i])?)));
            let pack = Pack::new(spans_of.collect::<Result<Vec<_>>>()?);
            let Buffers { model, state, .. } = &mut self.buffers;
            state.set_batch(&pack.ids, &pack.starts)?;
            model.forward(state, None)?;
            state.verdict()?;

            // Where modules of sentence-transformers follow, they come before the unit length.
            let setup = &self.setup;
            let alone = setup.normalize && setup.steps.is_empty();
            let vectors = self.buffers.pool(setup, &pack.spans, setup.pooling.op(), alone)?;
            let mut vectors = steps::apply(&setup.steps, vectors, setup.config.width)?;
            if setup.normalize && !alone {
                vectors = steps::apply(&[Step::Normalize], vectors, c)?;
            }
            for (vector, &i) in vectors.chunks_exact(c).zip(&items) {
                rows[i * c..][..c].copy_from_slice(vector);
            }
            progress(items.len(), items.iter().map(|&i| lengths[i]).sum());
        }
        Ok(())
    }
}

impl Buffers {
    /// The states of the last pack that ran, `[N, C]`: of the chosen layer, after the final norm if that is the last.
    fn states<'a>(setup: &Setup, state: &'a State) -> &'a Tensor {
        // The embedding's stream is the first, and each block writes the next of them.
        if setup.inner { &state.streams[setup.config.layers % state.streams.len()] } else { &state.hidden }
    }

    /// A row for each of `spans` (two numbers each, no more of them than tokens in a pack) of the last pack that ran.
    fn pool(
        &mut self,
        setup: &Setup,
        spans: &[i32],
        pooling: Pooling,
        unit_length: bool,
    ) -> Result<Vec<f32>> {
        let states = Buffers::states(setup, &self.state);
        self.pool.rows(&setup.device, states, spans, pooling, unit_length)
    }
}

impl Pool {
    /// A row for each of `spans` of `states`, `[N, C]`.
    fn rows(
        &mut self,
        device: &Device,
        states: &Tensor,
        spans: &[i32],
        pooling: Pooling,
        unit_length: bool,
    ) -> Result<Vec<f32>> {
        let Pool { pooled, unit, norm, spans: places } = self;
        let rows = spans.len() / 2;
        places.set_rows(rows)?;
        places.write(spans)?;
        pooled.set_rows(rows)?;
        pool_fwd(device, pooled, states, places, pooling)?;
        if !unit_length {
            return Ok(pooled.read_f32()?.into_owned());
        }
        unit.set_rows(rows)?;
        norm.set_rows(rows)?;
        l2norm_fwd(device, unit, norm, pooled, 1e-12)?;
        Ok(unit.read_f32()?.into_owned())
    }
}
