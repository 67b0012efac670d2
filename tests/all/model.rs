//! Properties of the whole model: what a vector may depend on, and what it may not.

use crate::common;

use common::{Loaded, at, config, models, novel5m, random_adapter, relative};
use llm2vec::device::Device;
use llm2vec::encode::Encoder;
use llm2vec::error::Result;
use llm2vec::memory::Arena;
use llm2vec::model::Model;
use llm2vec::model::lora::Delta;
use llm2vec::model::weights::{Source, Storage};
use llm2vec::ops::attention::Mask;
use llm2vec::pretrained::files::ModelFiles;
use llm2vec::pretrained::open::{Compute, Options, PoolOver};
use llm2vec::pretrained::pooling::PoolingMode;
use llm2vec::rng::philox;
use llm2vec::tensor::Raw;
use llm2vec::text::Prompt;
use llm2vec::text::tokenizer::Tokenizer;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

const MASKS: [Mask; 4] = [Mask::Full, Mask::Causal, Mask::Window(3), Mask::CausalWindow(3)];

/// Random sequences of these lengths.
fn sequences(vocab: usize, lengths: &[usize]) -> Vec<Vec<i32>> {
    let id = |s: usize, t: usize| (philox([s as u32, t as u32, 0, 0], [7, 0])[0] as usize % vocab) as i32;
    lengths.iter().enumerate().map(|(s, &n)| (0..n).map(|t| id(s, t)).collect()).collect()
}

fn views<'a>(all: &'a [Vec<i32>], order: &[usize]) -> Vec<&'a [i32]> {
    order.iter().map(|&i| all[i].as_slice()).collect()
}

/// What a CPU computes in: the reals of activations, and how weights are kept.
fn kinds() -> [(Device, Storage); 4] {
    [
        (Device::cpu(), Storage::Real),
        (Device::cpu(), Storage::Bf16),
        (Device::cpu(), Storage::Panels),
        (Device::cpu_f64(), Storage::Real),
    ]
}

/// Bit for bit, and under an adapter that stays beside the weights.
#[test]
fn a_sequence_is_the_same_alone_and_in_any_company() {
    for (dir, (device, storage)) in models().iter().flat_map(|dir| kinds().map(|kind| (dir, kind))) {
        let adapter = tempfile::tempdir().unwrap();
        random_adapter(adapter.path(), &config(dir), 3);
        for live in [None, Some(adapter.path())] {
            let mut model = Loaded::stored(dir, device.clone(), storage, &[], live);
            let texts = sequences(model.config.vocab, &[1, 2, 33, 7, 64, 1, 16, 129, 31]);
            for mask in MASKS {
                let alone: Vec<Vec<f64>> = texts.iter().map(|t| model.hidden(&[t], mask).remove(0)).collect();
                for order in
                    [[0, 1, 2, 3, 4, 5, 6, 7, 8], [8, 7, 6, 5, 4, 3, 2, 1, 0], [4, 0, 7, 2, 5, 8, 1, 6, 3]]
                {
                    let packed = model.hidden(&views(&texts, &order), mask);
                    for (states, &i) in packed.iter().zip(&order) {
                        let (live, off) = (live.is_some(), relative(states, &alone[i]));
                        assert!(
                            off == 0.0,
                            "{} {device:?} {storage:?} {mask:?}, adapter {live}: text {i} is off by {off:e}",
                            dir.display()
                        );
                    }
                }
            }
        }
    }
}

/// Which rows of `[T, C]` differ, compared bit for bit.
fn changed(a: &[f64], b: &[f64], c: usize) -> Vec<usize> {
    let rows = a.chunks_exact(c).zip(b.chunks_exact(c)).enumerate();
    rows.filter(|(_, (a, b))| a != b).map(|(t, _)| t).collect()
}

/// One block carries a token exactly as far as the mask says, the whole model exactly as many blocks as far.
#[test]
fn a_token_reaches_as_far_as_the_mask_says() {
    for dir in models() {
        let mut model = Loaded::load(&dir, Device::cpu_f64(), &[], None);
        let (c, layers, n) = (model.config.width, model.config.layers, 40);
        let before = sequences(model.config.vocab, &[n]).remove(0);
        for (mask, at) in MASKS.into_iter().flat_map(|mask| [0, 17, n - 1].map(|at| (mask, at))) {
            let mut after = before.clone();
            after[at] = (after[at] + 1) % model.config.vocab as i32;
            let hidden = model.hidden(&[&before], mask).remove(0);
            let stream = model.streams()[1].clone();
            let hidden_after = model.hidden(&[&after], mask).remove(0);
            let stream_after = model.streams()[1].clone();
            let reach = |blocks: usize| -> Vec<usize> {
                let far = |w: usize| blocks * (w - 1);
                let sees = |t: usize| match mask {
                    Mask::Full => true,
                    Mask::Causal => t >= at,
                    Mask::Window(w) => t.abs_diff(at) <= far(w),
                    Mask::CausalWindow(w) => t >= at && t - at <= far(w),
                };
                (0..n).filter(|&t| sees(t)).collect()
            };
            let what = format!("{} {mask:?}: token {at}", dir.display());
            assert_eq!(changed(&stream, &stream_after, c), reach(1), "{what}, block 0");
            assert_eq!(changed(&hidden, &hidden_after, c), reach(layers), "{what}, all blocks");
        }
    }
}

#[test]
fn a_live_adapter_equals_the_merged_one() {
    let mut worst = 0.0f64;
    for dir in models() {
        let adapter = tempfile::tempdir().unwrap();
        random_adapter(adapter.path(), &config(&dir), 3);
        let mut plain = Loaded::load(&dir, Device::cpu(), &[], None);
        let mut merged = Loaded::load(&dir, Device::cpu(), &[adapter.path().into()], None);
        let mut live = Loaded::load(&dir, Device::cpu(), &[], Some(adapter.path()));
        let texts = sequences(plain.config.vocab, &[5, 1, 40]);
        let all = views(&texts, &[0, 1, 2]);
        for mask in MASKS {
            let [plain, merged, live] =
                [&mut plain, &mut merged, &mut live].map(|model| model.hidden(&all, mask).concat());
            let off = relative(&live, &merged);
            assert!(off <= 1e-5, "{} {mask:?}: off by {off:e}", dir.display());
            assert!(relative(&plain, &merged) > 1e-2, "{}: the adapter does nothing", dir.display());
            worst = worst.max(off);
        }
    }
    println!("live against merged: worst {worst:.1e}");
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// Both ways of keeping bf16: widened as it is used, which changes nothing in a bf16 checkpoint, and multiplied as
/// it is, which rounds the activations too.
#[test]
fn bf16_weights_give_nearly_the_same_states() {
    for dir in models() {
        let load = |storage| Loaded::stored(&dir, Device::cpu(), storage, &[], None);
        let [mut real, mut widened, mut panels] = [Storage::Real, Storage::Bf16, Storage::Panels].map(load);
        let texts = sequences(real.config.vocab, &[3, 64, 17]);
        let all = views(&texts, &[0, 1, 2]);
        let [real, widened, panels] =
            [&mut real, &mut widened, &mut panels].map(|model| model.hidden(&all, Mask::Full));
        let mut lowest = 1.0f64;
        for (i, states) in real.iter().enumerate() {
            let (near, far) = (cosine(&widened[i], states), cosine(&panels[i], states));
            assert!(near >= 0.999 && far >= 0.999, "{} text {i}: {near} {far}", dir.display());
            lowest = lowest.min(far);
        }
        if dir == novel5m() {
            let off = relative(&widened.concat(), &real.concat());
            assert!(off <= 1e-5, "a bf16 checkpoint widened: off by {off:e}");
        }
        println!("{}: bf16 cosine {lowest:.6}", dir.display());
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let with_threads = |threads: usize, dir: &Path, storage| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut model = Loaded::stored(dir, Device::cpu(), storage, &[], None);
            let texts = sequences(model.config.vocab, &[200, 1, 64, 300, 33, 7]);
            MASKS.map(|mask| model.hidden(&views(&texts, &[0, 1, 2, 3, 4, 5]), mask)).concat().concat()
        })
    };
    for dir in models() {
        for storage in [Storage::Real, Storage::Bf16, Storage::Panels] {
            let one = with_threads(1, &dir, storage);
            for threads in [2, 3] {
                let more = with_threads(threads, &dir, storage);
                let same = one.iter().zip(&more).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{} {storage:?}: {threads} threads differ from one", dir.display());
            }
        }
    }
}

/// Every byte of the checkpoint is told once, and the end.
#[test]
fn loading_tells_the_bytes_that_it_has_read() {
    struct Told(ModelFiles, AtomicUsize, AtomicUsize);

    impl Source for Told {
        fn tensor(&self, name: &str) -> Result<Raw<'_>> {
            self.0.tensor(name)
        }

        fn deltas(&self, layer: usize, module: &str) -> Vec<&Delta> {
            self.0.deltas(layer, module)
        }

        fn taken(&self, bytes: Option<usize>) {
            self.1.fetch_add(bytes.unwrap_or(0), Ordering::Relaxed);
            self.2.fetch_add(usize::from(bytes.is_none()), Ordering::Relaxed);
        }
    }

    for dir in models() {
        let config = config(&dir);
        let (files, _) = ModelFiles::open(&at(&dir), &config, &[]).unwrap();
        let told = Told(files, AtomicUsize::new(0), AtomicUsize::new(0));
        let mut model = Model::new(&mut Arena::new(&Device::cpu()), &config, Mask::Full, Storage::Real, 64);
        model.load(&told).unwrap();
        let head = told.0.checkpoint.find("lm_head.weight").map_or(0, |head| head.data.len());
        let wanted = told.0.checkpoint.bytes() as usize - head;
        assert_eq!((told.1.into_inner(), told.2.into_inner()), (wanted, 1), "{}", dir.display());
    }
}

// ---- text to vectors ----

fn sentences() -> Vec<String> {
    let text = std::fs::read_to_string(common::here("tests/texts/sentences.txt")).unwrap();
    text.lines().map(str::to_string).collect()
}

fn novel_encoder(change: impl FnOnce(&mut Options)) -> Encoder {
    let mut options = Options::new(novel5m().to_str().unwrap());
    change(&mut options);
    Encoder::open(&options).unwrap()
}

fn compute(bf16: bool) -> Compute {
    if bf16 { Compute::Bf16 } else { Compute::F32 }
}

fn encode(encoder: &mut Encoder, prompts: &[Prompt]) -> Vec<f64> {
    let mut rows = vec![0.0; prompts.len() * encoder.width()];
    encoder.encode(prompts, &mut rows, |_, _| {}).unwrap();
    rows.iter().map(|&v| f64::from(v)).collect()
}

#[test]
fn a_vector_does_not_depend_on_the_pack() {
    let texts = sentences();
    for bf16 in [false, true] {
        let mut wide = novel_encoder(|o| (o.normalize, o.dtype) = (Some(true), compute(bf16)));
        let prompts: Vec<Prompt> = texts.iter().map(|t| wide.prompt("", t).unwrap()).collect();
        let reversed: Vec<Prompt> = prompts.iter().rev().cloned().collect();
        let c = wide.width();
        let alone: Vec<f64> =
            prompts.iter().flat_map(|p| encode(&mut wide, std::slice::from_ref(p))).collect();
        let backwards = encode(&mut wide, &reversed);
        let backwards: Vec<f64> = backwards.chunks_exact(c).rev().flatten().copied().collect();
        let mut all = vec![
            ("one pack".to_string(), encode(&mut wide, &prompts)),
            ("the other way round".into(), backwards),
        ];
        for tokens in [1, 40, 77, 128] {
            let mut narrow = novel_encoder(|o| {
                (o.normalize, o.dtype, o.max_length, o.tokens) =
                    (Some(true), compute(bf16), Some(40), Some(tokens));
            });
            all.push((format!("packs of {tokens} tokens"), encode(&mut narrow, &prompts)));
        }
        for (what, rows) in all {
            assert!(rows == alone, "bf16 {bf16}, {what}: off by {:e}", common::distance(&rows, &alone));
        }
    }
}

/// Rows of hidden states and their weights, as each pooling defines them, in f64.
fn naive_pool(mode: &str, states: &[f64], span: std::ops::Range<usize>, c: usize) -> Vec<f64> {
    let all = states.len() / c;
    let weights: Vec<(usize, f64)> = match mode {
        "mean" => span.map(|t| (t, 1.0)).collect(),
        "weighted-mean" => span.clone().map(|t| (t, (t - span.start + 1) as f64)).collect(),
        "last" => vec![(span.end - 1, 1.0)],
        "eos" => vec![(all - 1, 1.0)],
        _ => vec![(0, 1.0)],
    };
    let total: f64 = weights.iter().map(|(_, w)| w).sum();
    (0..c).map(|i| weights.iter().map(|(t, w)| w * states[t * c + i]).sum::<f64>() / total).collect()
}

#[test]
fn every_pooling_equals_its_definition() {
    let mut model = Loaded::load(&novel5m(), Device::cpu(), &[], None);
    let tokenizer = Tokenizer::open(&novel5m()).unwrap();
    let (c, instruction) = (model.config.width, "Say where the story goes:");
    let (bos, eos) = (tokenizer.bos_id().unwrap(), tokenizer.eos_id().unwrap());
    let mut spans_differ = false;
    for mode in ["mean", "weighted-mean", "last", "eos", "bos"] {
        for (all, instruction) in [(false, ""), (true, ""), (false, instruction), (true, instruction)] {
            let mut encoder = novel_encoder(|o| {
                o.pooling = Some(PoolingMode::by_name(mode).unwrap());
                o.pool_over = Some(if all { PoolOver::All } else { PoolOver::Text });
            });
            let texts = sentences();
            let prompts: Vec<Prompt> =
                texts.iter().map(|t| encoder.prompt(instruction, t).unwrap()).collect();
            let rows = encode(&mut encoder, &prompts);
            for (text, row) in texts.iter().zip(rows.chunks_exact(c)) {
                let whole = format!("{instruction} {text}");
                let whole = whole.trim_start();
                let row_of = tokenizer.encode(whole, true).unwrap();
                let own = |t: &usize| !row_of.special[*t] && row_of.offsets[*t].1 > whole.len() - text.len();
                let own: Vec<usize> = (0..row_of.ids.len()).filter(own).collect();
                let mut ids: Vec<i32> = row_of.ids.iter().map(|&id| id as i32).collect();
                assert_eq!(ids[0], bos as i32);
                if mode == "eos" {
                    ids.push(eos as i32);
                }
                let span = if all { 0..ids.len() } else { own[0]..own[own.len() - 1] + 1 };
                spans_differ |= span.len() < ids.len();
                let states = model.hidden(&[&ids], Mask::Full).remove(0);
                let off = relative(row, &naive_pool(mode, &states, span, c));
                assert!(off <= 1e-5, "{mode}, all {all}, {instruction:?}: off by {off:e} in {text:?}");
            }
        }
    }
    assert!(spans_differ);
}

/// A long text is tokenised only up to what is kept: the ids are those of the whole.
#[test]
fn a_long_text_is_cut_as_if_it_were_tokenised_whole() {
    let tokenizer = Tokenizer::open(&novel5m()).unwrap();
    let encoder = novel_encoder(|o| o.doc_max_length = Some(100));
    let words = sentences().join(" ").repeat(100);
    for text in [&words, &"w".repeat(100_000), &"雪の夜に".repeat(20_000), &" ".repeat(100_000)] {
        let whole = tokenizer.encode(text, true).unwrap();
        let prompt = encoder.prompt("", text).unwrap();
        let kept = prompt.text.len();
        assert_eq!(prompt.cut, kept + 1 < whole.ids.len());
        assert!(kept > 0 && kept <= 100, "{kept} tokens kept");
        assert_eq!(prompt.ids, whole.ids[..=kept], "{:?}", &text[..12]);
    }
}
