//! The contrastive loss at the scales of the paper's recipe. Cosines of random states crowd together, and a scale multiplies what
//! bf16 puts them off: so losses and gradients are measured by the chain of bf16 ops, which suffers the same.

use super::pass::Pass;
use super::tiny::{devices, models};
use super::{CHAIN, off};
use llm2vec::device::{DType, Device};
use llm2vec::memory::Arena;
use llm2vec::model::state::Keep;
use llm2vec::ops::contrastive::{InfoNce, LossDtype, contrastive_bwd, contrastive_fwd};
use llm2vec::ops::l2norm::{l2norm_bwd, l2norm_fwd};
use llm2vec::ops::pool::{Pooling, pool_bwd, pool_fwd};
use llm2vec::rng::philox;
use llm2vec::tensor::Tensor;

/// P
const QUERIES: usize = 16;
const EPS: f64 = 1e-12;

/// P queries, then M candidates: each text a row of ids, pooled over the second on.
struct Batch {
    ids: Vec<i32>,
    starts: Vec<i32>,
    scale: f64,
}

impl Batch {
    /// Of the first P candidates each shares every other token with its query.
    fn new(candidates: usize, scale: f64) -> Batch {
        let draw = |s: usize, t: usize| philox([s as u32, t as u32, 0, 3], [6, 1])[0] as usize;
        let mut batch = Batch { ids: Vec::new(), starts: vec![0], scale };
        for s in 0..QUERIES + candidates {
            let like = if s < 2 * QUERIES { s % QUERIES } else { s };
            let n = 3 + draw(like, 1000) % 3;
            let own = |t: usize| if t.is_multiple_of(2) { like } else { s };
            batch.ids.extend((0..n).map(|t| (draw(own(t), t) % 128) as i32));
            batch.starts.push(batch.ids.len() as i32);
        }
        batch
    }

    /// The loss of each query; leaves the gradient of their sum in `dh`.
    fn losses(&self, device: &Device, hidden: &Tensor, dh: &mut Tensor) -> Vec<f64> {
        let (texts, c) = (self.starts.len() - 1, hidden.shape()[1]);
        let mut arena = Arena::new(device);
        let mut of = |shape: &[usize]| arena.statistic(shape);
        let [mut pooled, mut unit, mut d_pooled, mut d_unit] = [(); 4].map(|()| of(&[texts, c]));
        let [mut q, mut dq] = [(); 2].map(|()| of(&[QUERIES, c]));
        let [mut k, mut dk] = [(); 2].map(|()| of(&[texts - QUERIES, c]));
        let [mut loss, mut lse] = [(); 2].map(|()| of(&[QUERIES]));
        let (mut norm, mut total) = (of(&[texts]), of(&[2]));
        let mut spans = arena.tensor(DType::I32, &[texts, 2]);
        let each: Vec<i32> = self.starts.windows(2).flat_map(|w| [w[0] + 1, w[1]]).collect();
        spans.write(&each).unwrap();
        let rule = InfoNce { scale: self.scale, margin: None, dtype: LossDtype::F32 };
        pool_fwd(device, &mut pooled, hidden, &spans, Pooling::Mean).unwrap();
        l2norm_fwd(device, &mut unit, &mut norm, &pooled, EPS).unwrap();
        q.copy_rows(0, &unit, 0, QUERIES).unwrap();
        k.copy_rows(0, &unit, QUERIES, texts - QUERIES).unwrap();
        contrastive_fwd(device, &mut total, &mut loss, &mut lse, &q, &k, None, rule).unwrap();
        contrastive_bwd(device, &mut dq, &mut dk, &q, &k, None, &lse, rule, QUERIES as f64).unwrap();
        d_unit.copy_rows(0, &dq, 0, QUERIES).unwrap();
        d_unit.copy_rows(QUERIES, &dk, 0, texts - QUERIES).unwrap();
        l2norm_bwd(device, &mut d_pooled, &d_unit, &unit, &norm, EPS, false).unwrap();
        pool_bwd(device, dh, &d_pooled, &spans, Pooling::Mean).unwrap();
        loss.to_f64()
    }
}

/// SimCSE's scale with the other texts of the batch as negatives, and the supervised one with a hard negative a row besides: the
/// losses of the queries, and each gradient, are at most twice as far off as the chain's.
#[test]
fn losses_at_the_scales_of_the_recipe_are_as_exact_as_bf16_allows() {
    for device in devices() {
        for tiny in &models() {
            for (candidates, scale) in [(QUERIES, 20.0), (2 * QUERIES, 50.0)] {
                let batch = Batch::new(candidates, scale);
                let run = |device: &Device, chain: bool| {
                    let mut pass = Pass::new(tiny, device, Keep::All, batch.ids.len());
                    let mut losses = Vec::new();
                    let loss = |hidden: &Tensor, dh: &mut Tensor| losses = batch.losses(device, hidden, dh);
                    let (_, gradients) = match chain {
                        true => pass.chain(&batch.ids, &batch.starts, loss),
                        false => pass.graph(&batch.ids, &batch.starts, loss),
                    };
                    [vec![losses], gradients]
                };
                let exact = run(&Device::cpu_f64(), false);
                let (chain, got) = (run(&Device::cpu(), true), run(&device, false));
                for (i, what) in ["losses", "a gradient"].into_iter().enumerate() {
                    let what = format!("{:?}, scale {scale}: {what}", tiny.config.family);
                    let mut worst = [0.0f64; 3];
                    for ((got, exact), chain) in got[i].iter().zip(&exact[i]).zip(&chain[i]) {
                        let (got, chain) = (off(got, exact), off(chain, exact));
                        let allowed = got <= 2.0 * chain && chain <= CHAIN;
                        assert!(allowed, "{what} off by {got:.2e}, the chain by {chain:.2e}");
                        for (worst, new) in worst.iter_mut().zip([got, chain, got / chain]) {
                            *worst = worst.max(new);
                        }
                    }
                    let [got, chain, ratio] = worst;
                    println!("{what} off by {got:.2e}, the chain by {chain:.2e}, ratio {ratio:.2}");
                }
                let mean = exact[0][0].iter().sum::<f64>() / QUERIES as f64;
                assert!((0.1..10.0).contains(&mean), "the batch is too easy or too hard: {mean}");
            }
        }
    }
}
