//! Which tiles a product on Hopper takes: one function of op, sizes, and what was found faster on the GPU. The bits are those of any
//! other tiles; kernels that sum otherwise are never chosen by timing, so that how long a pack is changes no row of it.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Tiles of a product for compute capability 9.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tile {
    /// Of 256 columns.
    Wide,
    /// Of 128 columns.
    Narrow,
}

impl Tile {
    /// All there are.
    pub const ALL: [Tile; 2] = [Tile::Wide, Tile::Narrow];

    /// Its name, as in a file.
    pub fn name(self) -> &'static str {
        match self {
            Tile::Wide => "wide",
            Tile::Narrow => "narrow",
        }
    }
}

/// What a tuning found to be faster than the default on one GPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// When, in UTC.
    pub date: String,
    /// By [`bucket`]; those alone that are not the default.
    pub picks: BTreeMap<String, Tile>,
}

/// The name of all calls of an op that are chosen for alike: each size up to the same power of two.
pub fn bucket(op: &str, sizes: &[usize]) -> String {
    let sizes: Vec<String> = sizes.iter().map(|n| n.next_power_of_two().to_string()).collect();
    format!("{op} {}", sizes.join("x"))
}

/// The tiles of a call, if the table has some for calls like it.
pub fn choose(table: Option<&Table>, op: &str, sizes: &[usize]) -> Option<Tile> {
    table.and_then(|table| table.picks.get(&bucket(op, sizes)).copied())
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
        let picks = BTreeMap::from([(bucket("a_fwd", &[100, 64]), Tile::Wide)]);
        let table = Table { date: "2026-01-02 03:04:05 UTC".into(), picks };
        let choice = |op: &str, sizes: &[usize]| choose(Some(&table), op, sizes);
        assert_eq!([[65, 33], [128, 64]].map(|sizes| choice("a_fwd", &sizes)), [Some(Tile::Wide); 2]);
        assert_eq!([[64, 64], [129, 64], [100, 65]].map(|sizes| choice("a_fwd", &sizes)), [None; 3]);
        assert_eq!((choice("a_bwd", &[100, 64]), choose(None, "a_fwd", &[100, 64])), (None, None));
        assert_eq!(
            [named(None), named(Some(&table))],
            ["table: default", "table: tuned 2026-01-02 03:04:05 UTC"]
        );
    }
}
