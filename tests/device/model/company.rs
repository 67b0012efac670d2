//! What a text's states may depend on beside the text: on a GPU, where in its pack it begins, and that but for rounding.

use super::pass::Pass;
use super::tiny::{devices, models};
use super::{CHAIN, off, pack};
use llm2vec::device::{DType, Device};
use llm2vec::model::state::Keep;
use llm2vec::ops::attention::{Heads, Mask, attention_bwd, attention_fwd};
use llm2vec::ops::dropout::Dropout;
use llm2vec::ops::lora_linear::lora_linear_fwd;
use llm2vec::rng::normal;
use llm2vec::tensor::Tensor;

/// Rows that a block of attention's kernel has: where a text begins at a multiple of them, its tiles are as if it were alone.
const BLOCK: i32 = llm2vec::launches::attention_fwd::ROWS;

/// Starts of texts of these lengths.
fn starts(lengths: &[usize]) -> Vec<i32> {
    (0..=lengths.len()).map(|i| lengths[..i].iter().sum::<usize>() as i32).collect()
}

/// Numbers that bf16 holds, on a device.
fn numbers(device: &Device, shape: [usize; 2], seed: u64) -> Tensor {
    let Device::Gpu(gpu) = device else { unreachable!() };
    Tensor::from_f64(DType::F64, &shape, normal(seed, shape[0] * shape[1])).to_gpu(gpu, DType::Bf16).unwrap()
}

/// The rows `first..first + n` of a tensor on a device.
fn rows(device: &Device, all: &Tensor, first: usize, n: usize) -> Tensor {
    let Device::Gpu(gpu) = device else { unreachable!() };
    let c = all.shape()[1];
    let values = all.to_f64()[first * c..][..n * c].to_vec();
    Tensor::from_f64(DType::F64, &[n, c], values).to_gpu(gpu, DType::Bf16).unwrap()
}

/// A whole pass: bit for bit where a text begins at a multiple of a block, as the first of a pack does; elsewhere the states
/// are as near to those of the text alone as twice what a chain of unfused ops is to exact ones.
#[test]
fn a_text_has_the_same_states_alone_and_in_a_pack() {
    let lengths = [64, 64, 40, 61, 27, 1, 33, 64, 30, 7];
    let (ids, starts, _) = pack(&lengths);
    for device in devices() {
        for tiny in &models() {
            let mut run = Pass::new(tiny, &device, Keep::All, ids.len());
            let (mut chain, mut exact) = (
                Pass::new(tiny, &Device::cpu(), Keep::All, ids.len()),
                Pass::new(tiny, &Device::cpu_f64(), Keep::All, ids.len()),
            );
            let exact = exact.hidden(&ids, &starts);
            let allowed = 2.0 * off(&chain.chain(&ids, &starts, |_, _| {}).0, &exact);
            assert!(allowed <= 2.0 * CHAIN);
            let packed = run.hidden(&ids, &starts);
            let c = packed.len() / ids.len();
            let (mut same, mut worst) = (0, 0.0f64);
            for s in starts.windows(2) {
                let [first, end] = [s[0] as usize, s[1] as usize];
                let alone = run.hidden(&ids[first..end], &[0, s[1] - s[0]]);
                let among = &packed[first * c..end * c];
                let apart = off(among, &alone);
                let what = format!("{:?}: text at {first}", tiny.config.family);
                assert!(s[0] % BLOCK != 0 || among == alone, "{what} is off by {apart:.2e}");
                assert!(apart <= allowed, "{what} is off by {apart:.2e}, allowed {allowed:.2e}");
                same += usize::from(among == alone);
                worst = worst.max(apart);
            }
            println!(
                "{:?}: {same} of {} texts bit for bit, worst {worst:.2e}, allowed {allowed:.2e}",
                tiny.config.family,
                lengths.len()
            );
        }
    }
}

/// Attention alone, of texts longer than a block.
#[test]
fn attention_of_a_text_at_a_block_is_as_if_it_were_alone() {
    let lengths = [130, 126, 300, 84, 7, 50];
    let (starts, heads) = (starts(&lengths), Heads { query: 2, key: 1, width: 32 });
    for device in devices() {
        let Device::Gpu(gpu) = &device else { unreachable!() };
        let qkv = numbers(&device, [lengths.iter().sum(), heads.columns()], 5);
        for mask in [Mask::Full, Mask::Causal, Mask::Window(45), Mask::CausalWindow(45)] {
            let attention = |qkv: &Tensor, starts: &[i32]| {
                let mut out = Tensor::zeros_on(gpu, DType::Bf16, &[qkv.shape()[0], 64]).unwrap();
                let starts = Tensor::from_i32(starts).to_gpu(gpu, DType::I32).unwrap();
                attention_fwd(&device, &mut out, None, qkv, &starts, heads, mask, None).unwrap();
                out.to_f64()
            };
            let packed = attention(&qkv, &starts);
            let mut aligned = 0;
            for s in starts.windows(2).filter(|s| s[0] % BLOCK == 0) {
                let [first, n] = [s[0] as usize, (s[1] - s[0]) as usize];
                let alone = attention(&rows(&device, &qkv, first, n), &[0, n as i32]);
                assert!(packed[first * 64..][..n * 64] == alone, "{mask:?}: text at {first}");
                aligned += 1;
            }
            assert_eq!(aligned, 3);
        }
    }
}

/// The product's tiles are large where rows are many, and small where they are few: a row's sum is the same in both.
#[test]
fn a_row_of_a_product_is_the_same_in_large_tiles_and_small() {
    let (many, few, m, k) = (128 * 96, 5, 72, 88);
    for device in devices() {
        let Device::Gpu(gpu) = &device else { unreachable!() };
        let (x, w) = (numbers(&device, [many, k], 1), numbers(&device, [m, k], 2));
        let residual = numbers(&device, [many, m], 3);
        let product = |x: &Tensor, residual: &Tensor| {
            let mut y = Tensor::zeros_on(gpu, DType::Bf16, &[x.shape()[0], m]).unwrap();
            lora_linear_fwd(&device, Some(&mut y), None, x, &w, None, None, Some(residual), None).unwrap();
            y.to_f64()
        };
        let all = product(&x, &residual);
        for first in [0, 61, many - few] {
            let one = product(&rows(&device, &x, first, few), &rows(&device, &residual, first, few));
            assert!(all[first * m..][..few * m] == one, "rows from {first} differ");
        }
    }
}

/// Attention's outputs and gradients of a text, from what its rows hold alone: first of a pack, in its midst and last of it,
/// behind and before texts about as long as a tile. Hopper's kernels give the same bits; the others sum keys in other groups.
#[test]
fn attention_of_a_text_does_not_depend_on_its_company() {
    let heads = Heads { query: 4, key: 1, width: 64 };
    let rounding = 2.0f64.powi(-8);
    for device in devices() {
        let Device::Gpu(gpu) = &device else { unreachable!() };
        let same = gpu.hopper("attention") && !gpu.chooses();
        let mut worst = 0.0f64;
        for mask in [Mask::Full, Mask::Causal, Mask::Window(45), Mask::CausalWindow(45)] {
            for (n, drop) in [(7, true), (33, false), (130, true)] {
                let text = Company {
                    device: &device,
                    heads,
                    mask,
                    drop,
                    text: [5, 6].map(|seed| seed << 8 | n as u64),
                    n,
                };
                for other in [1, 63, 64, 65, 127, 128, 129] {
                    let what = format!("{mask:?}: text of {n} beside {other}");
                    let lengths = [n, other, n, other, n];
                    gpu.seed(0);
                    let packed = text.among(&lengths, 0);
                    gpu.seed(1);
                    assert!(text.among(&lengths, 0) == packed, "{what}: other bits in another run");
                    for (at, packed) in [0, n + other, 2 * (n + other)].into_iter().zip(&packed) {
                        for (packed, alone) in packed.iter().zip(&text.among(&[n], at)[0]) {
                            assert!(!same || packed == alone, "{what}: other bits at {at}");
                            worst = worst.max(off(packed, alone));
                        }
                    }
                    assert!(worst <= rounding, "{what} is off by {worst:.2e}");
                }
            }
        }
        println!("{}: off by {worst:.2e} at most", gpu.name());
    }
}

/// A text of `n` rows and its gradient, of these seeds.
struct Company<'a> {
    device: &'a Device,
    heads: Heads,
    mask: Mask,
    drop: bool,
    text: [u64; 2],
    n: usize,
}

impl Company<'_> {
    /// Every second text of a pack is the one, others are drawn: its out, lse and dqkv each time. So many tokens came before the pack.
    fn among(&self, lengths: &[usize], before: usize) -> Vec<[Vec<f64>; 3]> {
        let Device::Gpu(gpu) = self.device else { unreachable!() };
        let (starts, n) = (starts(lengths), lengths.iter().sum());
        let (columns, width) = (self.heads.columns(), self.heads.query * self.heads.width);
        let put = |seed: u64, columns: usize| {
            let text = |(i, len): (usize, &usize)| {
                normal(if i % 2 == 0 { seed } else { 99 + i as u64 }, len * columns)
            };
            let all: Vec<f64> = lengths.iter().enumerate().flat_map(text).collect();
            Tensor::from_f64(DType::F64, &[n, columns], all).to_gpu(gpu, DType::Bf16).unwrap()
        };
        let (qkv, dout) = (put(self.text[0], columns), put(self.text[1], width));
        let zeros = |dtype, columns| Tensor::zeros_on(gpu, dtype, &[n, columns]).unwrap();
        let (mut out, mut lse) = (zeros(DType::Bf16, width), zeros(DType::F32, self.heads.query));
        let mut dqkv = zeros(DType::Bf16, columns);
        let at = Tensor::from_i32(&starts).to_gpu(gpu, DType::I32).unwrap();
        let dropout =
            self.drop.then_some(Dropout { rate: 0.3, seed: 3, step: 1, site: 2, first: 9 + before as u64 });
        attention_fwd(self.device, &mut out, Some(&mut lse), &qkv, &at, self.heads, self.mask, dropout)
            .unwrap();
        attention_bwd(self.device, &mut dqkv, &dout, &out, &lse, &qkv, &at, self.heads, self.mask, dropout)
            .unwrap();
        let all = [(out, width), (lse, self.heads.query), (dqkv, columns)]
            .map(|(x, columns)| (x.to_f64(), columns));
        let own = |&first: &i32| {
            all.each_ref().map(|(x, columns)| x[first as usize * columns..][..self.n * columns].to_vec())
        };
        starts[..lengths.len()].iter().step_by(2).map(own).collect()
    }
}
