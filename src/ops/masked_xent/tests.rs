//! How the rows are cut, on the emulator.

use super::*;
use crate::device::DType;
use crate::device::gpu::Gpu;
use crate::rng::normal;

const SIZES: [usize; 4] = [901, 136, 389, 450];

/// A random problem on an emulator, where the build holds kernels: x, w, rows, labels.
fn problem(capability: (u32, u32)) -> Option<(Gpu, [Tensor; 4])> {
    if crate::kernels::masked_xent::FILE.images.is_empty() {
        println!("skipped: this build holds no kernels (nvcc was not found)");
        return None;
    }
    let (gpu, [n, c, v, p]) = (Gpu::emulated(capability).unwrap(), SIZES);
    let float = |seed, shape: &[usize]| {
        let values = normal(seed, shape.iter().product());
        Tensor::from_f64(DType::F32, shape, values.iter().map(|x| x / 4.0))
    };
    let ints =
        |end: usize, step| Tensor::from_i32(&(0..p).map(|i| (i * step % end) as i32).collect::<Vec<_>>());
    let operands = [float(1, &[n, c]), float(2, &[v, c]), ints(n, 2), ints(v, 131)];
    let dtypes = [DType::Bf16, DType::Bf16, DType::I32, DType::I32];
    Some((gpu.clone(), std::array::from_fn(|i| operands[i].to_gpu(&gpu, dtypes[i]).unwrap())))
}

/// Waves change no bit of a row, and no more of dw than the order of its sums in f32; who wants no gradient gets the same loss.
#[test]
fn waves_change_no_bit_of_a_row() {
    for capability in [(8, 0), (9, 0)] {
        let Some((gpu, [x, w, rows, labels])) = problem(capability) else { return };
        let [_, c, v, p] = SIZES;
        let run = |wave: usize, head: bool, wanted: bool| {
            let zeros = |shape: &[usize]| Tensor::zeros_on(&gpu, DType::F32, shape).unwrap();
            let ([mut total, mut loss, mut lse], mut dw) =
                ([&[2][..], &[p], &[p]].map(zeros), zeros(&[v, c]));
            let mut dx = x.clone();
            let gradient = Gradient { dx: &mut dx, dw: head.then_some(&mut dw), dmean: 0.7 };
            let out = [&mut total, &mut loss, &mut lse];
            gpu::run(&gpu, out, wanted.then_some(gradient), [&x, &w, &rows, &labels], SIZES, wave).unwrap();
            ([total, loss, lse].map(|t| t.to_f64()), dx.to_f64(), dw.to_f64())
        };
        let (losses, dx, dw) = run(p, true, true);
        let (cut_losses, cut_dx, cut_dw) = run(256, true, true);
        assert!(losses == cut_losses && dx == cut_dx, "a row is whole in its wave");
        let most = dw.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        let off = dw.iter().zip(&cut_dw).fold(0.0f64, |m, (a, b)| m.max((a - b).abs()));
        assert!(off > 0.0 && off <= 2e-6 * most, "{off} of {most}");
        let (frozen_losses, frozen_dx, untouched) = run(256, false, true);
        assert!(losses == frozen_losses && dx == frozen_dx && untouched.iter().all(|&d| d == 0.0));
        assert!(losses == run(256, false, false).0);
    }
}

/// What a plan reserves for the largest batch is enough for every smaller one.
#[test]
fn the_workspace_is_enough_for_less() {
    for v in [1, 129, 32_000, 32_768, 128_256, 152_064] {
        let sizes = [1, 127, 128, 129, 640, 1000, 1024, 1100, 3277, 13107, 16384, 65536];
        let takes = sizes.map(|p| gpu::workspace(false, p, v, 4096));
        assert!(takes.is_sorted(), "{v}: {takes:?}");
        assert_eq!(gpu::wave(65536, v) % 256, 0);
    }
    assert!(gpu::workspace(false, 16384, 152_064, 4096) < 384 << 20);
}
