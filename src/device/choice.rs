//! Which of an op's kernels run where there are several: one function of op, sizes, default, and what was found faster on the GPU.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A way to run an op on compute capability 9.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// By the portable kernels.
    Portable,
    /// By those for Hopper.
    Hopper,
    /// By those for Hopper, a product in tiles of 256 columns.
    HopperWide,
    /// By those for Hopper, a product in tiles of 128 columns.
    HopperNarrow,
}

impl Variant {
    /// Its name, as in a file.
    pub fn name(self) -> &'static str {
        match self {
            Variant::Portable => "portable",
            Variant::Hopper => "hopper",
            Variant::HopperWide => "hopper-wide",
            Variant::HopperNarrow => "hopper-narrow",
        }
    }
}

/// What a tuning found to be faster than the default on one GPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// When, in UTC.
    pub date: String,
    /// By [`bucket`]; those alone that are not the default.
    pub picks: BTreeMap<String, Variant>,
}

/// The name of all calls of an op that are chosen for alike: each size up to the same power of two.
pub fn bucket(op: &str, sizes: &[usize]) -> String {
    let sizes: Vec<String> = sizes.iter().map(|n| n.next_power_of_two().to_string()).collect();
    format!("{op} {}", sizes.join("x"))
}

/// The variant of a call: the table's, if it has one for calls like it, else the default.
pub fn choose(table: Option<&Table>, op: &str, sizes: &[usize], default: Variant) -> Variant {
    let pick = table.and_then(|table| table.picks.get(&bucket(op, sizes)).copied());
    pick.unwrap_or(default)
}

/// A table in two or three words.
pub fn named(table: Option<&Table>) -> String {
    table.map_or("table: default".into(), |table| format!("table: tuned {}", table.date))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_a_bucket_are_chosen_for_alike() {
        let picks = BTreeMap::from([(bucket("a_fwd", &[100, 64]), Variant::HopperWide)]);
        let table = Table { date: "2026-01-02 03:04:05 UTC".into(), picks };
        let choice = |op: &str, sizes: &[usize]| choose(Some(&table), op, sizes, Variant::Hopper);
        assert_eq!([[65, 33], [128, 64]].map(|sizes| choice("a_fwd", &sizes)), [Variant::HopperWide; 2]);
        assert_eq!(
            [[64, 64], [129, 64], [100, 65]].map(|sizes| choice("a_fwd", &sizes)),
            [Variant::Hopper; 3]
        );
        assert_eq!(choice("a_bwd", &[100, 64]), Variant::Hopper);
        assert_eq!(choose(None, "a_fwd", &[100, 64], Variant::Portable), Variant::Portable);
        assert_eq!(
            [named(None), named(Some(&table))],
            ["table: default", "table: tuned 2026-01-02 03:04:05 UTC"]
        );
    }
}
