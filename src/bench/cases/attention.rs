//! Attention: packs, head counts, masks, dropout.

use super::{Case, DROPOUT, Ints, Level, Normal, Plan, Poison, unfused};
use crate::ops::attention::{Heads, Mask, attention_bwd, attention_fwd};

/// Lengths of one pack: ones, the row block of the CPU and its neighbours, one long among tiny ones.
const PACKS: &[&[usize]] = &[&[1], &[1, 63, 64, 65, 1], &[2, 3, 170, 1, 5], &[128, 128, 128, 128]];

pub fn attentions() -> Vec<Case> {
    let heads = [(1, 1, 8), (4, 4, 32), (6, 2, 16), (8, 1, 64)];
    let heads = heads.map(|(query, key, width)| Heads { query, key, width });
    let masks = [Mask::Full, Mask::Causal, Mask::Window(7), Mask::CausalWindow(70)];
    let mut list = Vec::new();
    for (&lengths, heads) in PACKS.iter().zip(heads) {
        for mask in masks {
            for drop in [false, true] {
                list.push(attention(lengths, heads, mask, drop, true));
                list.push(attention(lengths, heads, mask, drop, false));
            }
        }
    }
    // A long text whose width fills no vector.
    let heads = Heads { query: 2, key: 1, width: 20 };
    list.extend([true, false].map(|forward| attention(&[7, 190], heads, Mask::Window(33), true, forward)));
    list
}

pub(super) fn attention(lengths: &[usize], heads: Heads, mask: Mask, drop: bool, forward: bool) -> Case {
    let n: usize = lengths.iter().sum();
    let mut starts = vec![0];
    starts.extend(lengths.iter().scan(0, |at, &len| {
        *at += len as i32;
        Some(*at)
    }));
    let pairs = |&len: &usize| (0..len).map(|i| mask.keys(i, len).len()).sum::<usize>();
    let (h, d) = (heads.query, heads.width);
    let pairs: usize = lengths.iter().map(pairs).sum();
    let dropout = drop.then_some(DROPOUT);
    let qkv = ("qkv", Normal(vec![n, heads.columns()]));
    let starts = ("starts", Ints(vec![lengths.len() + 1], starts));
    let name = if drop { " drop" } else { "" };
    let label = format!("{lengths:?} H={h} G={} D={d}{name} {mask:?}", heads.key);
    if forward {
        return Case {
            op: "attention_fwd",
            label,
            outputs: vec![("out", Poison(vec![n, h * d])), ("lse", Poison(vec![n, h]))],
            inputs: vec![qkv, starts],
            flops: 4 * h * d * pairs,
            elements: n * (heads.columns() + h * d + h),
            plan: Plan::chain(move |o, i| unfused::attention_fwd(o, i, heads, mask, dropout)),
            run: Box::new(move |dev, o, i| {
                let [out, lse] = o else { unreachable!() };
                attention_fwd(dev, out, Some(lse), &i[0], &i[1], heads, mask, dropout)
            }),
        };
    }
    let (dout, out) = (("dout", Normal(vec![n, h * d])), ("out", Normal(vec![n, h * d])));
    Case {
        op: "attention_bwd",
        label,
        outputs: vec![("dqkv", Poison(vec![n, heads.columns()]))],
        inputs: vec![dout, out, ("lse", Level(vec![n, h], 4.0)), qkv, starts],
        flops: 10 * h * d * pairs,
        elements: n * (2 * heads.columns() + 2 * h * d + h),
        plan: Plan::chain(move |o, i| unfused::attention_bwd(o, i, heads, mask, dropout)),
        run: Box::new(move |dev, o, i| {
            attention_bwd(dev, &mut o[0], &i[0], &i[1], &i[2], &i[3], &i[4], heads, mask, dropout)
        }),
    }
}
