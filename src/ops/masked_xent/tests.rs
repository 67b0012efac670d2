//! How the logits are cut, on the emulator.

use super::*;
use crate::rng::normal;

const SIZES: [usize; 4] = [301, 136, 389, 150];

/// A random problem on the emulator, where the build holds kernels: x, w, rows, labels, lse.
fn problem() -> Option<(Gpu, [Tensor; 5])> {
    if kernels::FILE.images.is_empty() {
        println!("skipped: this build holds no kernels (nvcc was not found)");
        return None;
    }
    let (gpu, [n, c, v, p]) = (Gpu::emulated((8, 0)).unwrap(), SIZES);
    let float = |seed, shape: &[usize]| {
        let values = normal(seed, shape.iter().product());
        Tensor::from_f64(DType::F32, shape, values.iter().map(|x| x / 4.0))
    };
    let ints =
        |end: usize, step| Tensor::from_i32(&(0..p).map(|i| (i * step % end) as i32).collect::<Vec<_>>());
    let operands = [float(1, &[n, c]), float(2, &[v, c]), ints(n, 2), ints(v, 131), float(3, &[p])];
    let dtypes = [DType::Bf16, DType::Bf16, DType::I32, DType::I32, DType::F32];
    Some((gpu.clone(), std::array::from_fn(|i| operands[i].to_gpu(&gpu, dtypes[i]).unwrap())))
}

fn forward(gpu: &Gpu, [x, w, rows, labels, _]: &[Tensor; 5], shares: [usize; 2]) -> Result<[Tensor; 3]> {
    let p = SIZES[3];
    let mut out = [2, p, p].map(|n| Tensor::zeros(DType::F32, &[n]));
    for t in &mut out {
        *t = t.to_gpu(gpu, DType::F32)?;
    }
    gpu_fwd(gpu, out.each_mut(), [x, w, rows, labels], SIZES, shares)?;
    Ok(out)
}

fn backward(
    gpu: &Gpu,
    [x, w, rows, labels, lse]: &[Tensor; 5],
    wave: usize,
    head: bool,
) -> Result<[Tensor; 2]> {
    let [n, c, v, _] = SIZES;
    let (mut dx, mut dw) = (x.clone(), Tensor::zeros_on(gpu, DType::F32, &[v, c])?);
    assert_eq!(dx.shape(), [n, c]);
    let dw_or_none = head.then_some(&mut dw);
    gpu_bwd(gpu, &mut dx, dw_or_none, [x, w, rows, labels, lse], 0.7, SIZES, wave)?;
    Ok([dx, dw])
}

/// What the vocabulary is cut into for blocks, and the rows into waves, changes no more than the order of sums in f32.
#[test]
fn shares_and_waves_change_no_more_than_rounding() {
    let Some((gpu, operands)) = problem() else { return };
    let close = |a: &Tensor, b: &Tensor| {
        let (a, b) = (a.to_f64(), b.to_f64());
        let most = b.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        a.iter().zip(&b).for_each(|(a, b)| assert!((a - b).abs() <= 2e-6 * most, "{a}, {b}"));
    };
    let whole = forward(&gpu, &operands, [1, 4]).unwrap();
    for shares in [[2, 2], [3, 2], [4, 1]] {
        let cut = forward(&gpu, &operands, shares).unwrap();
        whole.iter().zip(&cut).for_each(|(a, b)| close(a, b));
    }
    let [dx, dw] = backward(&gpu, &operands, SIZES[3], true).unwrap();
    let [cut_dx, cut_dw] = backward(&gpu, &operands, ACROSS, true).unwrap();
    assert_eq!(dx.to_f64(), cut_dx.to_f64(), "a row is whole in its wave");
    close(&dw, &cut_dw);
    let [frozen_dx, untouched] = backward(&gpu, &operands, ACROSS, false).unwrap();
    assert_eq!(dx.to_f64(), frozen_dx.to_f64());
    assert!(untouched.to_f64().iter().all(|&d| d == 0.0));
}

/// What a plan reserves for the largest batch is enough for every smaller one.
#[test]
fn the_workspace_is_enough_for_less() {
    for v in [1, 129, 32_000, 32_768, 128_256, 152_064] {
        let takes = |p: usize| {
            let dz = wave(p, v) * v.next_multiple_of(8);
            fwd_bytes(shares(p, v, ACROSS)[1] * p, p).max(workspace_bytes(&[(DType::Bf16, &[dz])]))
        };
        let sizes = [1, 127, 128, 129, 640, 1000, 1024, 1100, 3277, 13107, 16384, 65536];
        let mut most = 0;
        for p in sizes {
            most = most.max(takes(p));
            assert!(most <= portable_workspace(p, v), "{p} {v}");
        }
    }
    assert!(portable_workspace(16384, 152_064) < 130 << 20);
}
