//! What attention's kernels cost, as `tests/device.rs` finds it counted: little more than what the pack's pairs need.

use llm2vec::ops::attention::{Heads, Mask, attention_bwd_cost, attention_fwd_cost};

/// Sentences fill tiles: about twice the operations of the pairs that are seen, and the operands' bytes, but for keys that
/// two tiles read.
#[test]
fn sentences_fill_tiles() {
    let lengths: Vec<usize> = (0..400).map(|i| 20 + i * 7 % 41).collect();
    let starts: Vec<i32> = (0..=400).map(|i| lengths[..i].iter().sum::<usize>() as i32).collect();
    let pairs: usize = lengths.iter().map(|n| n * n).sum();
    let (h, d, n) = (32, 128, starts[400] as usize);
    let heads = Heads { query: h, key: h, width: d };
    let forward = attention_fwd_cost(&starts, heads, Mask::Full);
    let backward = attention_bwd_cost(&starts, heads, Mask::Full);
    let share = |flops: usize, products: usize| flops as f64 / (2 * products * h * d * pairs) as f64;
    println!("operations {:.2} and {:.2} of those seen", share(forward.flops, 2), share(backward.flops, 7));
    println!("bytes {:.2} of the operands'", forward.bytes as f64 / (h * n * (8 * d + 4)) as f64);
    assert!(share(forward.flops, 2) < 2.5 && share(backward.flops, 7) < 2.0);
    assert!((forward.bytes as f64) < 1.2 * (h * n * (8 * d + 4)) as f64);
    // One long text has nothing to leave out.
    let long = [0, 4096];
    assert_eq!(attention_fwd_cost(&long, heads, Mask::Full).flops, 4 * h * d * 4096 * 4096);
    assert_eq!(attention_bwd_cost(&long, heads, Mask::Full).flops, 14 * h * d * 4096 * 4096);
    let causal =
        attention_fwd_cost(&long, heads, Mask::Causal).flops as f64 / (2 * h * d * 4096 * 4097) as f64;
    assert!(causal < 1.02, "{causal}");
}
