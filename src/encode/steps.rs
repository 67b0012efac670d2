//! What happens to pooled vectors in a sentence-transformers model: Dense, Normalize, truncation. On the CPU whatever
//! the device: a few numbers a text.

use crate::error::{Error, Result};
use crate::pretrained::sentence_transformers::{Activation, Dense, Residual, Step};
use rayon::prelude::*;

/// Takes one vector through all steps, sums in f64.
fn vector(steps: &[Step], mut x: Vec<f32>) -> Vec<f32> {
    for step in steps {
        x = match step {
            Step::Normalize => {
                let norm = x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt().max(1e-12);
                x.iter().map(|&v| (f64::from(v) / norm) as f32).collect()
            }
            Step::Dense(dense) => dense_fwd(dense, &x),
            Step::Cut(most) => {
                x.truncate(*most);
                x
            }
        };
    }
    x
}

/// All rows of `width`, which become rows of what the last step gives.
pub(super) fn apply(steps: &[Step], rows: Vec<f32>, width: usize) -> Result<Vec<f32>> {
    if steps.is_empty() {
        return Ok(rows);
    }
    let mut inputs = width;
    for step in steps {
        match step {
            Step::Dense(d) if d.inputs != inputs => {
                let what =
                    format!("a Dense module takes {} numbers, the vectors before it have {inputs}", d.inputs);
                return Err(Error::unsupported(what));
            }
            Step::Dense(d) => inputs = d.outputs,
            Step::Cut(most) => inputs = inputs.min(*most),
            Step::Normalize => {}
        }
    }
    let rows: Vec<Vec<f32>> = rows.par_chunks(width).map(|row| vector(steps, row.to_vec())).collect();
    Ok(rows.concat())
}

fn dense_fwd(d: &Dense, x: &[f32]) -> Vec<f32> {
    let product = |w: &[f32]| w.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum::<f64>();
    let output = |(m, w): (usize, &[f32])| {
        let bias = d.bias.as_ref().map_or(0.0, |b| f64::from(b[m]));
        let y = activated(d.activation, product(w) + bias);
        let residual = match &d.residual {
            Residual::None => 0.0,
            Residual::Input => f64::from(x[m]),
            Residual::Map(r) => product(&r[m * d.inputs..][..d.inputs]),
        };
        (y + residual) as f32
    };
    d.weight.chunks_exact(d.inputs).enumerate().map(output).collect()
}

fn activated(f: Activation, x: f64) -> f64 {
    match f {
        Activation::Identity => x,
        Activation::Tanh => x.tanh(),
        Activation::Relu => x.max(0.0),
        Activation::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        Activation::Silu => x / (1.0 + (-x).exp()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dense(activation: Activation, residual: Residual) -> Step {
        let weight = vec![1.0, 2.0, 0.0, -1.0];
        Step::Dense(Dense { weight, bias: Some(vec![0.5, 0.0]), activation, residual, inputs: 2, outputs: 2 })
    }

    /// y = f(x Wᵀ + b) + residual, by hand for x = [1, -1].
    #[test]
    fn dense_is_what_torch_computes() {
        let run = |step: Step| apply(&[step], vec![1.0, -1.0], 2).unwrap();
        let z = [-0.5f64, 1.0];
        for (activation, wanted) in [
            (Activation::Identity, z),
            (Activation::Tanh, z.map(f64::tanh)),
            (Activation::Relu, [0.0, 1.0]),
            (Activation::Sigmoid, z.map(|z| 1.0 / (1.0 + (-z).exp()))),
            (Activation::Silu, z.map(|z| z / (1.0 + (-z).exp()))),
        ] {
            let got = run(dense(activation, Residual::None));
            assert_eq!(got, wanted.map(|y| y as f32), "{activation:?}");
        }
        assert_eq!(run(dense(Activation::Identity, Residual::Input)), [0.5, 0.0]);
        assert_eq!(run(dense(Activation::Identity, Residual::Map(vec![1.0, 0.0, 2.0, 0.0]))), [0.5, 3.0]);
    }

    #[test]
    fn steps_run_in_their_order() {
        let rows = apply(&[Step::Normalize, Step::Cut(1)], vec![3.0, 4.0, 0.0, 0.0], 2).unwrap();
        assert_eq!(rows, [0.6, 0.0]);
        assert!(apply(&[Step::Cut(1), dense(Activation::Tanh, Residual::None)], vec![1.0, 2.0], 2).is_err());
    }
}
