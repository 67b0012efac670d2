//! Attention: packs, head counts, masks, dropout.

use super::{Case, DROPOUT, Facts, Ints, Level, Normal, Poison, activation, chain, index, single, unfused};
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
    list.extend(token_tiles());
    list.extend(slices());
    list
}

/// What GPUs tile: every head width, lengths at a tile's edge, sentences, one long text among tiny ones, sequences by the
/// hundred; each head count with a mask, then with another and dropout.
fn token_tiles() -> Vec<Case> {
    let sentences = [20, 60, 33, 47, 25, 1, 38, 52, 29];
    let tiny = [3, 1, 2, 150, 1, 1, 1, 2, 5, 40];
    let hundreds: Vec<usize> = (0..1100).map(|i| 1 + i % 7 / 6).collect();
    let [full, causal] = [Mask::Full, Mask::Causal];
    let [near, before] = [Mask::Window(7), Mask::CausalWindow(70)];
    let packs: [(&[usize], [usize; 3], [Mask; 2]); 12] = [
        (&[1], [2, 1, 16], [full, causal]),
        (&[31, 32, 33], [4, 1, 32], [near, full]),
        (&[127, 128, 129], [2, 2, 64], [full, before]),
        (&[63, 64, 65], [2, 1, 80], [causal, full]),
        (&sentences, [8, 1, 16], [full, full]),
        (&sentences, [2, 2, 96], [before, near]),
        (&tiny, [4, 2, 128], [full, near]),
        // Packs of one token more than a block's, and one less than two.
        (&[127, 2], [2, 1, 128], [full, before]),
        (&[128, 127], [2, 1, 96], [full, near]),
        // Several groups of four heads, and of eight.
        (&[33, 5], [8, 2, 32], [full, causal]),
        (&[19, 40], [16, 2, 16], [near, full]),
        (&hundreds, [1, 1, 16], [causal, full]),
    ];
    let each = packs.into_iter().flat_map(|(lengths, [query, key, width], masks)| {
        let heads = Heads { query, key, width };
        let both = [(masks[0], false), (masks[1], true)];
        both.map(|(mask, drop)| [true, false].map(|forward| attention(lengths, heads, mask, drop, forward)))
    });
    each.flatten().collect()
}

/// What the kernels for Hopper tile: slices of 128 rows of one text, halves of them, heads side by side and one after the other,
/// tiles of 128 keys and narrower last ones; of the backward texts of one slice and of several, tiles of 64.
fn slices() -> Vec<Case> {
    let sentences = [20, 60, 33, 47, 25, 1, 38, 52, 29, 16, 17, 64];
    let tiny = [3, 1, 2, 390, 1, 1, 1, 2, 5, 40];
    let [full, causal] = [Mask::Full, Mask::Causal];
    let [near, before] = [Mask::Window(7), Mask::CausalWindow(70)];
    // Texts of a slice whose second tile of queries has each width, and whose keys are each number of sixteens.
    let wide = [70, 86, 94, 103, 111, 119];
    let packs: [(&[usize], [usize; 3], [Mask; 2]); 15] = [
        (&wide, [2, 2, 64], [full, causal]),
        (&wide, [2, 1, 128], [causal, full]),
        (&[1], [2, 1, 64], [full, causal]),
        (&sentences, [8, 2, 128], [full, causal]),
        (&sentences, [4, 4, 64], [near, full]),
        (&sentences, [3, 3, 128], [causal, full]),
        (&tiny, [8, 1, 64], [full, before]),
        (&[63, 64, 65, 128, 129], [6, 2, 128], [before, full]),
        (&[191, 192, 193], [2, 2, 64], [causal, near]),
        (&[257, 300], [4, 1, 128], [near, causal]),
        (&[450], [2, 1, 128], [full, full]),
        // A last slice whose two heads have several tiles of keys each, beside slices of both halves.
        (&[390], [2, 2, 64], [full, causal]),
        (&[390], [2, 2, 128], [causal, full]),
        // First halves that see a tile less than their slices, item after item.
        (&[300], [4, 4, 128], [near, near]),
        // A third head that is alone with keys which are there.
        (&[5, 64, 40, 9], [3, 1, 64], [full, causal]),
    ];
    let each = packs.into_iter().flat_map(|(lengths, [query, key, width], masks)| {
        let heads = Heads { query, key, width };
        let both = [(masks[0], false), (masks[1], true)];
        both.map(|(mask, drop)| [true, false].map(|forward| attention(lengths, heads, mask, drop, forward)))
    });
    each.flatten().collect()
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
    let qkv = activation("qkv", Normal(vec![n, heads.columns()]));
    let starts = index("starts", Ints(vec![lengths.len() + 1], starts));
    let name = if drop { " drop" } else { "" };
    let lengths = match lengths.len() {
        0..20 => format!("{lengths:?}"),
        many => format!("{many} sequences"),
    };
    let sizes = Facts::sizes([("H", h), ("G", heads.key), ("D", d)]);
    let label = format!("{lengths} {}{name} {mask:?}", sizes.spelled());
    let facts = Facts { mask: Some(mask), dropout: drop, ..sizes };
    if forward {
        return Case {
            op: "attention_fwd",
            label,
            facts,
            outputs: vec![activation("out", Poison(vec![n, h * d])), single("lse", Poison(vec![n, h]))],
            inputs: vec![qkv, starts],
            flops: 4 * h * d * pairs,
            elements: n * (heads.columns() + h * d + h),
            unfused: chain(move |o, i| unfused::attention_fwd(o, i, heads, mask, dropout)),
            run: Box::new(move |dev, o, i| {
                let [out, lse] = o else { unreachable!() };
                attention_fwd(dev, out, Some(lse), &i[0], &i[1], heads, mask, dropout)
            }),
        };
    }
    let (dout, out) = (activation("dout", Normal(vec![n, h * d])), activation("out", Normal(vec![n, h * d])));
    Case {
        op: "attention_bwd",
        label,
        facts,
        outputs: vec![activation("dqkv", Poison(vec![n, heads.columns()]))],
        inputs: vec![dout, out, single("lse", Level(vec![n, h], 4.0)), qkv, starts],
        flops: 10 * h * d * pairs,
        elements: n * (2 * heads.columns() + 2 * h * d + h),
        unfused: chain(move |o, i| unfused::attention_bwd(o, i, heads, mask, dropout)),
        run: Box::new(move |dev, o, i| {
            attention_bwd(dev, &mut o[0], &i[0], &i[1], &i[2], &i[3], &i[4], heads, mask, dropout)
        }),
    }
}
