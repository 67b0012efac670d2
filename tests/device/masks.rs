//! Dropout masks of kernels are those of the CPU, element by element: operands of zeros and ones show each by itself.

use crate::answers::{built, cuda};
use crate::run;
use llm2vec::device::gpu::Gpu;
use llm2vec::device::images::KernelSet;
use llm2vec::device::{DType, Device};
use llm2vec::ops::attention::{Heads, Mask, attention_bwd, attention_fwd};
use llm2vec::ops::dropout::{Dropout, dropout_fwd};
use llm2vec::ops::lora_linear::{Lora, LoraGrads, lora_linear_bwd, lora_linear_fwd};
use llm2vec::tensor::Tensor;
use rayon::prelude::*;

/// Tokens before a pack: on and off every grid that a fragment has, and past 32 bits.
const FIRST: [u64; 6] = [0, 1, 11, 15, 17, (1 << 32) - 3];
/// The last two are the smallest and the largest that are drawn, upper bits of thresholds 0 and 1.
const RATES: [f64; 4] = [0.05, 0.5, 1e-9, 1.0 - 1e-9];

fn dropout(first: u64, rate: f64) -> Dropout {
    Dropout { rate, seed: 1 << 40 | 9, step: 6, site: 2, first }
}

/// Row after row, which of `columns` columns the CPU keeps.
fn kept(dropout: Dropout, plane: usize, rows: usize, columns: usize) -> Vec<Vec<bool>> {
    let row = |row| {
        let mut x = vec![1.0f64; columns];
        dropout.apply(dropout.key(), row, plane, 0, &mut x);
        x.iter().map(|&x| x != 0.0).collect()
    };
    (0..rows).map(row).collect()
}

fn on(gpu: &Gpu, dtype: DType, shape: &[usize], value: impl Fn(usize, usize) -> f64) -> Tensor {
    let columns = shape[1];
    let values = (0..shape[0] * columns).map(|at| value(at / columns, at % columns));
    Tensor::from_f64(DType::F64, shape, values).to_gpu(gpu, dtype).unwrap()
}

fn one_if(it: bool) -> f64 {
    if it { 1.0 } else { 0.0 }
}

fn elementwise(gpu: &Gpu, dropout: Dropout) {
    let [n, c] = [19, 136];
    let (x, mut y) = (on(gpu, DType::Bf16, &[n, c], |_, _| 1.0), on(gpu, DType::Bf16, &[n, c], |_, _| 7.0));
    for plane in [0, 2] {
        dropout_fwd(&Device::Gpu(gpu.clone()), &mut y, &x, plane, dropout).unwrap();
        let got: Vec<bool> = y.to_f64().iter().map(|&y| y != 0.0).collect();
        assert!(got == kept(dropout, plane, n, c).concat(), "dropout_fwd, {dropout:?}");
    }
}

/// xa under an identity a is the mask; with dxa an identity, da is the mask of each segment, and dx the sum of the masks
/// by the weights 1, 2 and 4.
fn low_rank(gpu: &Gpu, dropout: Dropout, n: usize) {
    const RANK: usize = 64;
    let (device, rows, scales) = (Device::Gpu(gpu.clone()), [RANK; 3], [1.0; 3]);
    let [k, m, stacked] = [RANK, 3 * RANK, 3 * RANK];
    let bf16 = |shape: [usize; 2], value: &dyn Fn(usize, usize) -> f64| on(gpu, DType::Bf16, &shape, value);
    let f32 = |shape: [usize; 2], value: &dyn Fn(usize, usize) -> f64| on(gpu, DType::F32, &shape, value);
    let diagonal = |i: usize, j: usize| one_if(i % RANK == j);
    let (x, w, b) = (bf16([n, k], &|_, _| 1.0), bf16([m, k], &|_, _| 0.0), f32([m, RANK], &diagonal));
    let masks: Vec<_> = (0..3).map(|s| kept(dropout, s, n, k)).collect();

    let (a, mut xa) = (f32([stacked, k], &diagonal), bf16([n, stacked], &|_, _| 7.0));
    let lora = Lora { a: &a, b: &b, rows: &rows, scales: &scales };
    lora_linear_fwd(&device, None, Some(&mut xa), &x, &w, None, Some(lora), None, Some(dropout)).unwrap();
    for (at, xa) in xa.to_f64().into_iter().enumerate() {
        let (row, s, column) = (at / stacked, at % stacked / RANK, at % RANK);
        assert!((xa != 0.0) == masks[s][row][column], "xa of {row}, {column}, segment {s}: {dropout:?}");
    }

    let a = f32([stacked, k], &|row, _| f64::from(1 << (row / RANK)));
    let lora = Lora { a: &a, b: &b, rows: &rows, scales: &scales };
    let dy = bf16([n, m], &|row, column| one_if(row % RANK == column % RANK));
    let (mut dx, mut dxa) = (bf16([n, k], &|_, _| 7.0), bf16([n, stacked], &|_, _| 7.0));
    let (mut da, mut db) = (f32([stacked, k], &|_, _| 0.0), f32([m, RANK], &|_, _| 0.0));
    let grads = Some(LoraGrads { a: &mut da, b: &mut db });
    let (dx_out, dxa_out) = (Some(&mut dx), Some(&mut dxa));
    lora_linear_bwd(&device, dx_out, grads, dxa_out, &dy, &x, Some(&xa), &w, Some(lora), Some(dropout))
        .unwrap();
    for (at, dx) in dx.to_f64().into_iter().enumerate() {
        let (row, column) = (at / k, at % k);
        let weights: f64 = (0..3).map(|s| f64::from(1 << s) * one_if(masks[s][row][column])).sum();
        let got = (dx / dropout.scale()).round();
        assert!(got == weights, "dx of {row}, {column}: {got}, not {weights}: {dropout:?}");
    }
    for (at, da) in da.to_f64().into_iter().enumerate() {
        let (s, rank, column) = (at / k / RANK, at / k % RANK, at % k);
        let tokens = (rank..n).step_by(RANK).map(|row| one_if(masks[s][row][column])).sum::<f64>();
        let got = (da / dropout.scale()).round();
        assert!(got == tokens, "da of {rank}, {column}, segment {s}: {got}, not {tokens}: {dropout:?}");
    }
}

/// Where all scores are 0, out is the mask if key j's value is unit vector j; dv is it if dout of query i is unit vector i,
/// summed over the heads of a key by the weights 1 and 2; and dq if key j is unit vector j and values are ones.
fn probabilities(gpu: &Gpu, dropout: Dropout, texts: &[usize], mask: Mask) {
    const D: usize = 64;
    let (device, heads) = (Device::Gpu(gpu.clone()), Heads { query: 4, key: 2, width: D });
    let share = heads.query / heads.key;
    let place: Vec<usize> = texts.iter().flat_map(|&len| 0..len).collect();
    let starts: Vec<i32> = texts
        .iter()
        .scan(0, |end, &len| {
            *end += len as i32;
            Some(*end)
        })
        .collect();
    let text = |row: usize| starts.iter().take_while(|&&end| end <= row as i32).count();
    let starts = Tensor::from_i32(&[&[0][..], &starts].concat()).to_gpu(gpu, DType::I32).unwrap();
    let (n, width, columns) = (place.len(), heads.query * D, heads.columns());
    let bf16 =
        |columns: usize, value: &dyn Fn(usize, usize) -> f64| on(gpu, DType::Bf16, &[n, columns], value);
    let unit = |row: usize, column: usize| one_if(place[row] == column % D);
    let masks: Vec<_> = (0..heads.query).map(|h| kept(dropout, h, n, D)).collect();
    // Whether query `row` sees key `j` of its text, and head `h` keeps it.
    let stays = |row: usize, h: usize, j: usize| {
        let seen = j < texts[text(row)] && (mask == Mask::Full || j <= place[row]);
        seen && masks[h][row][j]
    };

    let (first_key, first_value) = (heads.query * D, (heads.query + heads.key) * D);
    let qkv = bf16(columns, &|row, c| if c < first_value { 0.0 } else { unit(row, c) });
    let mut out = bf16(width, &|_, _| 7.0);
    attention_fwd(&device, &mut out, None, &qkv, &starts, heads, mask, Some(dropout)).unwrap();
    for (at, out) in out.to_f64().into_iter().enumerate() {
        let (row, h, j) = (at / width, at % width / D, at % D);
        assert!((out != 0.0) == stays(row, h, j), "out of {row}, head {h}, key {j}: {dropout:?}");
    }

    let keys_and_ones = |row: usize, c: usize| match c {
        c if c < first_key => 0.0,
        c if c < first_value => unit(row, c),
        _ => 1.0,
    };
    let weight = |h: usize| f64::from(1 << (h % share));
    let (qkv, out) = (bf16(columns, &keys_and_ones), bf16(width, &|_, _| 0.0));
    let (dout, mut dqkv) = (bf16(width, &|row, c| unit(row, c) * weight(c / D)), bf16(columns, &|_, _| 7.0));
    let lse = on(gpu, DType::F32, &[n, heads.query], |_, _| 0.0);
    attention_bwd(&device, &mut dqkv, &dout, &out, &lse, &qkv, &starts, heads, mask, Some(dropout)).unwrap();
    let got = dqkv.to_f64();
    for (row, got) in got.chunks(columns).enumerate() {
        for (at, dq) in got[..first_key].iter().enumerate() {
            let (h, j) = (at / D, at % D);
            assert!((*dq != 0.0) == stays(row, h, j), "dq of {row}, head {h}, key {j}: {dropout:?}");
        }
        for (at, dv) in got[first_value..].iter().enumerate() {
            // Query i of this key's text.
            let (group, i) = (at / D, at % D);
            let query = row - place[row] + i;
            let there = i < texts[text(row)];
            let of_group = group * share..(group + 1) * share;
            let wanted: f64 =
                of_group.map(|h| weight(h) * one_if(there && stays(query, h, place[row]))).sum();
            let got = (dv / dropout.scale()).round();
            assert!(got == wanted, "dv of {row}, query {i}, heads {group}: {got}, not {wanted}: {dropout:?}");
        }
    }
}

/// The forward by tiles of 128 keys: as above, but column c shows keys c, c + 128 and c + 256 by weights 1, 2 and 4.
fn tiles_of_keys(gpu: &Gpu, dropout: Dropout, texts: &[usize], mask: Mask) {
    const D: usize = 128;
    let (device, heads) = (Device::Gpu(gpu.clone()), Heads { query: 4, key: 2, width: D });
    let place: Vec<usize> = texts.iter().flat_map(|&len| 0..len).collect();
    let length: Vec<usize> = texts.iter().flat_map(|&len| std::iter::repeat_n(len, len)).collect();
    let ends = texts.iter().scan(0, |end, &len| {
        *end += len as i32;
        Some(*end)
    });
    let starts: Vec<i32> = std::iter::once(0).chain(ends).collect();
    let starts = Tensor::from_i32(&starts).to_gpu(gpu, DType::I32).unwrap();
    let (n, width, first_value) = (place.len(), heads.query * D, (heads.query + heads.key) * D);
    let weight = |j: usize, c: usize| one_if(j % D == c % D) * f64::from(1 << (j / D));
    let value = |row: usize, c: usize| if c < first_value { 0.0 } else { weight(place[row], c) };
    let qkv = on(gpu, DType::Bf16, &[n, heads.columns()], value);
    let mut out = on(gpu, DType::Bf16, &[n, width], |_, _| 7.0);
    attention_fwd(&device, &mut out, None, &qkv, &starts, heads, mask, Some(dropout)).unwrap();
    let longest = *texts.iter().max().unwrap();
    let masks: Vec<_> = (0..heads.query).map(|h| kept(dropout, h, n, longest)).collect();
    for (at, out) in out.to_f64().into_iter().enumerate() {
        let (row, h, c) = (at / width, at % width / D, at % D);
        let keys = mask.keys(place[row], length[row]);
        let stays = keys.clone().filter(|&j| j % D == c && masks[h][row][j]);
        let wanted: f64 = stays.map(|j| weight(j, c)).sum();
        let got = (out * keys.len() as f64 / dropout.scale()).round();
        assert!(got == wanted, "out of {row}, head {h}, keys {c} on: {got}, not {wanted}: {dropout:?}");
    }
}

/// The kernels for Hopper: texts that begin anywhere, with tiles whole, narrow, and seen in part.
fn on_hopper(open: impl Fn() -> Gpu + Sync, threads: usize) {
    let rates = [0.1, 0.3, 0.5, 1e-9, 1.0 - 1e-9];
    let cases: Vec<_> = FIRST.iter().flat_map(|&first| rates.map(|rate| dropout(first, rate))).collect();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| {
        cases.par_iter().enumerate().for_each(|(i, &dropout)| {
            let gpu = open();
            low_rank(&gpu, dropout, [64, 65, 5, 130][i % 4]);
            probabilities(&gpu, dropout, &[33, 5, 1, 61, 40, 3], [Mask::Full, Mask::Causal][i % 2]);
            let mask = [Mask::Full, Mask::Causal, Mask::Window(70), Mask::CausalWindow(140)][i % 4];
            tiles_of_keys(&gpu, dropout, &[[5, 300, 64, 90], [257, 1, 17, 130]][i / 4 % 2], mask);
        })
    });
}

fn all_on(open: impl Fn() -> Gpu + Sync, threads: usize) {
    let cases: Vec<_> = FIRST.iter().flat_map(|&first| RATES.map(|rate| dropout(first, rate))).collect();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| {
        cases.par_iter().enumerate().for_each(|(i, &dropout)| {
            let gpu = open();
            elementwise(&gpu, dropout);
            low_rank(&gpu, dropout, [64, 65, 5, 130][i % 4]);
            // Ragged: keys begin anywhere in their text, tiles hold several texts.
            probabilities(&gpu, dropout, &[33, 5, 1, 61, 40, 3], Mask::Full);
            probabilities(&gpu, dropout, &[7, 64, 2, 58, 27], Mask::Causal);
        })
    });
}

#[test]
fn masks_are_those_of_the_cpu_on_the_emulator() {
    if built() {
        all_on(|| Gpu::emulated((8, 0)).unwrap(), 2);
    }
}

#[test]
fn masks_by_kernels_for_hopper_are_those_of_the_cpu_on_the_emulator() {
    if built() {
        on_hopper(|| run::emulated((9, 0)), 2);
    }
}

#[test]
fn masks_are_those_of_the_cpu_on_a_gpu() {
    if let Some(gpu) = cuda().filter(|_| built()) {
        all_on(|| gpu.clone(), 1);
        if gpu.capability() == (9, 0) {
            on_hopper(|| gpu.clone().with_kernels(KernelSet::Hopper).unwrap(), 1);
        }
    }
}
