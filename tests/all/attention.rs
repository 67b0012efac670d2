//! What attention's kernels do for real packs, counted on the emulator: little more than what the pack's pairs need.

use crate::answers;

use llm2vec::device::gpu::Gpu;
use llm2vec::device::images::KernelSet;
use llm2vec::device::{DType, Device};
use llm2vec::ops::attention::{Heads, Mask, attention_bwd, attention_fwd};
use llm2vec::tensor::Tensor;

const HEADS: Heads = Heads { query: 1, key: 1, width: 128 };

/// Operations of tensor cores and bytes asked for, forward and backward, on sequences of these lengths.
fn counts(lengths: &[usize], mask: Mask) -> [[usize; 2]; 2] {
    counts_by(Gpu::emulated((8, 0)).unwrap(), lengths, mask, HEADS)
}

/// The same by Hopper's kernels.
fn hopper_counts(lengths: &[usize], mask: Mask, heads: Heads) -> [[usize; 2]; 2] {
    counts_by(Gpu::emulated((9, 0)).unwrap().with_kernels(KernelSet::Hopper).unwrap(), lengths, mask, heads)
}

fn counts_by(gpu: Gpu, lengths: &[usize], mask: Mask, heads: Heads) -> [[usize; 2]; 2] {
    let device = Device::Gpu(gpu.clone());
    let n: usize = lengths.iter().sum();
    let starts: Vec<i32> = (0..=lengths.len()).map(|i| lengths[..i].iter().sum::<usize>() as i32).collect();
    let starts = Tensor::from_i32(&starts).to_gpu(&gpu, DType::I32).unwrap();
    let zeros = |dtype, columns: usize| Tensor::zeros_on(&gpu, dtype, &[n, columns]).unwrap();
    let (qkv, mut dqkv) = (zeros(DType::Bf16, heads.columns()), zeros(DType::Bf16, heads.columns()));
    let (mut out, mut lse) = (zeros(DType::Bf16, heads.query * heads.width), zeros(DType::F32, heads.query));
    let dout = out.clone();
    let forward =
        gpu.count(|| attention_fwd(&device, &mut out, Some(&mut lse), &qkv, &starts, heads, mask, None));
    let backward =
        gpu.count(|| attention_bwd(&device, &mut dqkv, &dout, &out, &lse, &qkv, &starts, heads, mask, None));
    [forward, backward].map(|counted| {
        let counted = counted.unwrap();
        let sum = |one: fn(&_) -> u64| counted.iter().map(|(_, c)| one(&c.total)).sum::<u64>() as usize;
        [sum(|c: &llm2vec::device::emulator::Count| c.flops), sum(|c| c.bytes)]
    })
}

/// Sentences fill tiles: about twice the operations of the pairs that are seen, and the operands' bytes, but for keys that
/// two tiles read.
#[test]
fn sentences_fill_tiles() {
    if !answers::built() {
        return;
    }
    let lengths: Vec<usize> = (0..60).map(|i| 20 + i * 7 % 41).collect();
    let (n, pairs) = (lengths.iter().sum::<usize>(), lengths.iter().map(|n| n * n).sum::<usize>());
    let d = HEADS.width;
    let [[flops, bytes], [back, _]] = counts(&lengths, Mask::Full);
    let share = |flops: usize, products: usize| flops as f64 / (2 * products * d * pairs) as f64;
    println!("operations {:.2} and {:.2} of those seen", share(flops, 2), share(back, 7));
    println!("bytes {:.2} of the operands'", bytes as f64 / (n * (8 * d + 4)) as f64);
    assert!(share(flops, 2) < 2.5 && share(back, 7) < 2.0);
    assert!((bytes as f64) < 1.2 * (n * (8 * d + 4)) as f64);
}

/// One long text has nothing to leave out; a causal one leaves out what no tile sees.
#[test]
fn a_long_text_is_whole_tiles() {
    if !answers::built() {
        return;
    }
    let (n, d) = (512, HEADS.width);
    let [[flops, _], [back, _]] = counts(&[n], Mask::Full);
    assert_eq!([flops, back], [4 * d * n * n, 14 * d * n * n]);
    let [[causal, _], _] = counts(&[n], Mask::Causal);
    let share = causal as f64 / (2 * d * n * (n + 1)) as f64;
    assert!(share < 1.1, "{share}");
}

/// By Hopper's kernels a token of a sentence costs at most 1.15 times what one of a text of 64 does, whose tiles are full; with
/// heads that share keys the forward of short ones costs less. Their backward leaves out what a causal mask hides of halves.
#[test]
fn hopper_multiplies_what_sentences_have() {
    if !answers::built() {
        return;
    }
    let a_token = |lengths: &[usize], mask, heads| {
        let tokens = lengths.iter().sum::<usize>() as f64;
        hopper_counts(lengths, mask, heads).map(|[flops, _]| flops as f64 / tokens)
    };
    let sentences: Vec<usize> = (20..=60).collect();
    let (own, shared) = (HEADS, Heads { query: 4, ..HEADS });
    let [forward, backward] = a_token(&[64; 4], Mask::Full, own);
    let [ragged, back] = a_token(&sentences, Mask::Full, own).map(|flops| flops / forward);
    let back = back * forward / backward;
    let [grouped, _] = a_token(&sentences, Mask::Full, shared).map(|flops| flops / (4.0 * forward));
    println!(
        "a token of 20 to 60 costs {ragged:.3} and {back:.3} of one of 64, {grouped:.3} with four heads a key's"
    );
    assert!(ragged <= 1.15 && back <= 1.15 && grouped <= 1.02);
    let [_, causal] = a_token(&[128; 2], Mask::Causal, own);
    let [_, whole] = a_token(&[128; 2], Mask::Full, own);
    assert_eq!(causal / whole, 0.75);
}
