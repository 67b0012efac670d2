//! What a device reaches: a copy, and a product, or what a CPU's instructions multiply; timed between the cases of a run.

use super::cases::Case;
use super::cases::large::roofs;
use super::record::{Rival, Roof, Row, Spread};
use super::subject::{Clock, Operands, Subject};
use crate::device::{Device, panels};
use crate::error::Result;

/// The cases that the roof is measured by, in sizes that a device needs to reach it; a CPU multiplies none.
pub fn bounds(device: &Device) -> [Case; 2] {
    match device {
        Device::Cpu(_) => roofs(8192, 1),
        Device::Gpu(_) => roofs(65536, 8192),
    }
}

/// The roof as it is measured, as far as the device has it.
#[derive(Default)]
pub struct Bounds<'a> {
    copy: Option<Subject<'a>>,
    product: Option<Product<'a>>,
}

/// What a product is held against.
enum Product<'a> {
    /// A plain one of ours.
    Plain(Subject<'a>),
    /// The CPU's instructions, on bf16 or else f32: their rates so far, and their name.
    Instructions { bf16: bool, rates: Vec<f64>, name: &'static str },
}

impl<'a> Bounds<'a> {
    /// Of [`bounds`]; on the CPU products may be of bf16.
    pub fn new(operands: &Operands, cases: &'a [Case; 2], bf16: bool) -> Bounds<'a> {
        let [copy, product] = cases;
        let plain = || Subject::new(operands, product).ok().map(Product::Plain);
        let product = match &operands.device {
            Device::Cpu(_) => Some(Product::Instructions { bf16, rates: Vec::new(), name: "" }),
            Device::Gpu(_) => plain(),
        };
        Bounds { copy: Subject::new(operands, copy).ok(), product }
    }

    /// Times both.
    pub fn sample(&mut self, clock: &mut Clock, samples: usize) -> Result<()> {
        self.copy.iter_mut().try_for_each(|copy| copy.sample(clock, samples))?;
        match &mut self.product {
            Some(Product::Plain(product)) => product.sample(clock, samples)?,
            Some(Product::Instructions { bf16, rates, name }) => {
                for _ in 0..samples {
                    let (rate, by) = panels::peak(*bf16);
                    (*name, _) = (by, rates.push(rate));
                }
            }
            None => {}
        }
        Ok(())
    }

    /// By the medians so far; a CPU's instructions by the best rate, as nothing but who else uses the cores slows them.
    pub fn roof(&self, device: &Device) -> Roof {
        let median = |samples: &[f64]| Some(Spread::of(samples)?.median);
        let rate = |subject: &Subject, amount: u64| Some(amount as f64 / median(&subject.samples)?);
        let (flops_per_second, product) = match &self.product {
            Some(Product::Plain(p)) => (rate(p, p.case.flops as u64), Some("our own kernel".into())),
            Some(Product::Instructions { rates, name, .. }) => {
                (rates.iter().copied().reduce(f64::max), Some((*name).into()))
            }
            None => (None, None),
        };
        Roof {
            bytes_per_second: self.copy.as_ref().and_then(|c| rate(c, c.case.bytes(device))),
            flops_per_second,
            product,
        }
    }
}

/// The roof with the product of the rival's that is faster, if one is.
pub fn better(roof: Roof, rows: &[Row]) -> Roof {
    let products = rows.iter().flat_map(|row| {
        let plain = row.rivals.iter().filter(|(name, _)| name.starts_with("F.linear"));
        plain.filter_map(|(name, rival)| match rival {
            Rival::Time(t) => Some((row.flops as f64 / t.median, name)),
            Rival::Note(_) => None,
        })
    });
    match products.max_by(|a, b| a.0.total_cmp(&b.0)) {
        Some((rate, name)) if roof.flops_per_second.is_none_or(|ours| rate > ours) => {
            Roof { flops_per_second: Some(rate), product: Some(format!("the rival's {name}")), ..roof }
        }
        _ => roof,
    }
}

/// The least time that the roof leaves for the bytes and the operations of a row, over its median.
pub fn share(row: &Row, roof: &Roof) -> Option<f64> {
    let least = |amount: u64, rate: Option<f64>| rate.map(|r| amount as f64 / r);
    let (bytes, flops) = (least(row.bytes, roof.bytes_per_second)?, least(row.flops, roof.flops_per_second)?);
    Some(bytes.max(flops) / row.time?.median)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_roof_is_the_better_product() {
        let time = |median: f64| Rival::Time(Spread { median, least: median, samples: 1 });
        let rivals = [("F.linear (cuBLAS)", 1e-3), ("bound: F.linear, no adapter", 1e-9), ("peft", 1e-9)];
        let rivals = rivals.into_iter().map(|(name, s)| (name.to_string(), time(s))).collect();
        let rows = [Row { flops: 1_000_000_000, rivals, ..Row::default() }, Row::default()];
        let ours = |rate| Roof {
            flops_per_second: Some(rate),
            product: Some("our own kernel".into()),
            ..Roof::default()
        };
        assert_eq!(better(ours(2e12), &rows), ours(2e12));
        let theirs = better(ours(0.5e12), &rows);
        assert_eq!(theirs.flops_per_second, Some(1e12));
        assert_eq!(theirs.product.as_deref(), Some("the rival's F.linear (cuBLAS)"));
    }

    #[test]
    fn the_instructions_of_a_cpu_count_by_their_best_rate() {
        let product = Product::Instructions { bf16: false, rates: vec![2e12, 3e12, 1e12], name: "f32" };
        let roof = Bounds { copy: None, product: Some(product) }.roof(&Device::cpu());
        assert_eq!(roof.flops_per_second, Some(3e12));
    }
}
