//! How the score matrix is cut, and ties, on the emulator.

use super::*;
use crate::rng::normal;

/// A random problem on the CPU and on the emulator, where the build holds kernels: q, c, ids, lse.
fn problem(sizes: [usize; 3]) -> Option<(Gpu, [Tensor; 4], [Tensor; 4])> {
    problem_on((8, 0), sizes)
}

fn problem_on(capability: (u32, u32), sizes: [usize; 3]) -> Option<(Gpu, [Tensor; 4], [Tensor; 4])> {
    if kernels::FILE.images.is_empty() {
        println!("skipped: this build holds no kernels (nvcc was not found)");
        return None;
    }
    let (gpu, [p, m, c]) = (Gpu::emulated(capability).unwrap(), sizes);
    let float = |seed, shape: &[usize]| {
        let values = normal(seed, shape.iter().product());
        Tensor::from_f64(DType::F32, shape, values.iter().map(|x| x / 2.0))
    };
    let ids: Vec<i32> = (0..m).map(|j| (j % (m - 3)) as i32).collect();
    let here = [float(1, &[p, c]), float(2, &[m, c]), Tensor::from_i32(&ids), float(3, &[p])];
    let there = std::array::from_fn(|i| here[i].to_gpu(&gpu, here[i].dtype()).unwrap());
    Some((gpu, here, there))
}

fn bits(t: &Tensor) -> Vec<u32> {
    t.to_host().unwrap().host::<f32>().unwrap().iter().map(|x| x.to_bits()).collect()
}

/// What a row of tiles is cut into for blocks, and the rows into waves, is nobody's business.
#[test]
fn shares_change_no_more_than_rounding_and_waves_no_bit() {
    let sizes @ [p, ..] = [130, 260, 24];
    let Some((gpu, here, [q, k, ids, lse])) = problem(sizes) else { return };
    let rule = InfoNce { scale: 2.0, margin: Some(0.5), dtype: LossDtype::F32 };
    let zeros = |shape: &[usize]| Tensor::zeros(DType::F32, shape);
    let [mut total, mut loss, mut sum] = [zeros(&[2]), zeros(&[p]), zeros(&[p])];
    let [a, b, d] = [&mut total, &mut loss, &mut sum];
    contrastive_fwd(&Device::cpu(), a, b, d, &here[0], &here[1], Some(&here[2]), rule).unwrap();
    for shares in [[1, 5], [2, 3], [5, 1]] {
        let mut out = [&total, &loss, &sum].map(|t| t.to_gpu(&gpu, DType::F32).unwrap());
        gpu_fwd(&gpu, out.each_mut(), [&q, &k], Some(&ids), rule, sizes, shares).unwrap();
        for (got, wanted) in out.iter().zip([&total, &loss, &sum]) {
            let pairs = got.to_f64().into_iter().zip(wanted.to_f64());
            pairs.for_each(|(g, w)| assert!((g - w).abs() < 1e-5 * w.abs().max(1.0), "{shares:?}: {g}, {w}"));
        }
    }
    let run = |wave: usize| {
        let mut out = [&q, &k].map(|t| t.to_gpu(&gpu, DType::F32).unwrap());
        gpu_bwd(&gpu, out.each_mut(), [&q, &k, &lse], Some(&ids), rule, 0.5, sizes, wave).unwrap();
        out.map(|t| bits(&t))
    };
    assert_eq!(run(64), run(p));
}

/// What a plan reserves for the largest batch is enough for every smaller one.
#[test]
fn the_workspace_is_enough_for_less() {
    let sizes = [1, 7, 63, 64, 65, 127, 500, 1000, 1024, 2047, 4097, 9000, 16384, 40000, 65536];
    for (i, m) in sizes.iter().enumerate() {
        for p in &sizes[..=i] {
            let has = portable_workspace(*p, *m);
            for m in sizes.iter().filter(|n| *n <= m) {
                for p in sizes.iter().filter(|n| *n <= p && *n <= m) {
                    let takes = fwd_bytes(shares(*p, *m)[1] * p, *p);
                    let dz = wave([*p, *m, 0]) * m.next_multiple_of(8);
                    assert!(takes.max(bwd_bytes(dz, *p)) <= has, "{p} {m}");
                }
            }
        }
    }
    assert!(portable_workspace(65536, 131072) < 70 << 20);
}

/// The same of the kernels for Hopper.
#[test]
fn waves_on_hopper_change_no_bit() {
    let sizes @ [p, ..] = [300, 520, 72];
    let Some((gpu, here, there)) = problem_on((9, 0), sizes) else { return };
    let ([q, k, ids, lse], rule) = (&there, InfoNce { scale: 2.0, margin: Some(0.5), dtype: LossDtype::F32 });
    let of = hopper::Operands { q, candidates: k, ids: Some(ids), rule, sizes };
    let zeros = |shape: &[usize]| Tensor::zeros(DType::F32, shape);
    let mut exact = [&[2][..], &[p], &[p]].map(zeros);
    let [total, loss, sum] = exact.each_mut();
    contrastive_fwd(&Device::cpu(), total, loss, sum, &here[0], &here[1], Some(&here[2]), rule).unwrap();
    let run = |wave| {
        let mut losses = exact.each_ref().map(|t| t.to_gpu(&gpu, DType::F32).unwrap());
        hopper::forward(&gpu, losses.each_mut(), of, wave).unwrap();
        let mut out = [q, k].map(|t| t.to_gpu(&gpu, DType::F32).unwrap());
        hopper::backward(&gpu, out.each_mut(), lse, of, 0.5, wave).unwrap();
        (losses.map(|t| t.to_f64()), out.map(|t| bits(&t)))
    };
    let one = run(p);
    for (got, wanted) in one.0.iter().flatten().zip(exact.iter().flat_map(Tensor::to_f64)) {
        assert!((got - wanted).abs() < 1e-5 * wanted.abs().max(1.0), "{got}, {wanted}");
    }
    assert!(one == run(128) && one == run(192));
}

/// A candidate that is the positive once more ties with it, whichever tiles the two are in.
#[test]
fn a_second_copy_of_the_positive_is_no_win() {
    let sizes @ [p, m, _] = [3, 135, 40];
    let Some((gpu, here, [q, ..])) = problem(sizes) else { return };
    let mut k = here[1].clone();
    k.host_mut::<f32>().unwrap().fill(0.0);
    for (row, from) in [(0, 0), (1, 1), (2, 2), (70, 1), (134, 0)] {
        k.copy_rows(row, &here[0], from, 1).unwrap();
    }
    let k = k.to_gpu(&gpu, DType::F32).unwrap();
    for margin in [None, Some(0.0)] {
        let rule = InfoNce { scale: 1.0, margin, dtype: LossDtype::F32 };
        let mut out = [2, p, p].map(|n| Tensor::zeros_on(&gpu, DType::F32, &[n]).unwrap());
        gpu_fwd(&gpu, out.each_mut(), [&q, &k], None, rule, sizes, shares(p, m)).unwrap();
        assert_eq!(out[0].to_f64()[1], 1.0, "query 2 alone has no equal to its positive");
    }
}
