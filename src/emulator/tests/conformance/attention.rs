//! Attention by TMA, mbarriers and wgmma whose left operand is in registers: right under every schedule.

use super::*;
use half::bf16;

const PTX: &str = include_str!("ptx/attention_sm90.ptx");
const WIDTH: usize = 128;

/// softmax(Q K^T / sqrt(WIDTH)) V of one head, and the same with the absolute values of V.
fn exact([q, k, v]: &[Vec<f64>; 3], (t, heads, head): (usize, usize, usize)) -> Vec<[f64; 2]> {
    let row = |x: &[f64], i: usize| x[(i * heads + head) * WIDTH..][..WIDTH].to_vec();
    let mut out = Vec::new();
    for i in 0..t {
        let query = row(q, i);
        let score = |j| query.iter().zip(row(k, j)).map(|(q, k)| q * k).sum::<f64>() / (WIDTH as f64).sqrt();
        let weights: Vec<f64> = (0..t).map(|j| f64::exp(score(j))).collect();
        let (sum, mut line) = (weights.iter().sum::<f64>(), vec![[0.0; 2]; WIDTH]);
        for (j, weight) in weights.iter().enumerate() {
            for (to, v) in line.iter_mut().zip(row(v, j)) {
                *to = [to[0] + weight / sum * v, to[1] + weight / sum * v.abs()];
            }
        }
        out.extend(line);
    }
    out
}

/// Q, K and V of `t` tokens.
fn inputs(t: usize, heads: usize) -> [Vec<bf16>; 3] {
    [1, 2, 3]
        .map(|seed| noise(t * heads * WIDTH, seed).into_iter().map(|x| bf16::from_f32(2.0 * x)).collect())
}

fn launch(inputs: &[Vec<bf16>; 3], t: usize, heads: usize) -> (Launch, Vec<Arg<'_>>) {
    let map = || TensorMap {
        element: Element::Bf16,
        address: 0,
        sizes: vec![(heads * WIDTH) as u64, t as u64],
        strides: vec![(2 * heads * WIDTH) as u64],
        tile: vec![64, 64],
        steps: vec![1, 1],
        swizzle: Swizzle::B128,
    };
    let [q, k, v] = inputs.each_ref().map(|x| Arg::Map(bytes_of(x), map()));
    let args = vec![q, k, v, Arg::ScratchMap(2 * t * heads * WIDTH, map()), Arg::Int(t as i32)];
    let launch = Launch {
        grid: [t as u32 / 128, heads as u32, 1],
        block: [288, 1, 1],
        shared: 10 * 16384,
        budget: 1 << 20,
        ..Launch::default()
    };
    (launch, args)
}

/// Whatever else is taken out is noticed: a report, or other numbers.
#[test]
fn nothing_can_be_left_out() {
    let inputs = inputs(384, 1);
    let (launch, args) = launch(&inputs, 384, 1);
    excused(survivors_of(PTX, "attention", &launch, &args), 28, &[], "attention");
}

#[test]
fn it_is_right_under_every_schedule() {
    let (t, heads) = (384, 1);
    let inputs = inputs(t, heads);
    let (launch, args) = launch(&inputs, t, heads);
    let numbers = inputs.each_ref().map(|x| x.iter().map(|x| x.to_f64()).collect::<Vec<f64>>());
    let exact = exact(&numbers, (t, heads, 0));
    let counters = judge_all(PTX, "attention", &launch, &args, |out| {
        let got = out[3].as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f64());
        for (i, (got, [sum, size])) in got.zip(&exact).enumerate() {
            // P and O are rounded to bf16; f32 sums and ex2.approx are far better.
            let error = (sum.abs() + size) * 2f64.powi(-8);
            assert!((got - sum).abs() <= error, "{i}: {got} {sum}");
        }
    });
    let total = counters.total;
    assert_eq!((total.flops, total.conflicts), ((4 * t * t * WIDTH * heads) as u64, 0));
    assert_eq!(total.bytes, (2 * (2 * t + 2 * t * (t / 128)) * WIDTH * heads) as u64);
}
