//! The figures of a task under MTEB's names.

use serde::ser::{Serialize, SerializeMap, Serializer};

/// What a task gave: named figures, from 0 to 1 as MTEB has them, the one that counts, and numbers of things.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores {
    /// The name of the figure that MTEB calls `main_score`.
    pub main: String,
    /// Figures by name; `None` where there is none (a constant side, nothing to average).
    pub values: Vec<(String, Option<f64>)>,
    /// How many rows, queries and the like.
    pub counts: Vec<(String, u64)>,
    /// The same for parts of the set, by name.
    pub subsets: Vec<(String, Scores)>,
}

impl Scores {
    /// None yet.
    pub fn new(main: &str) -> Scores {
        Scores { main: main.into(), ..Scores::default() }
    }

    /// Adds a figure.
    pub fn add(&mut self, name: impl Into<String>, value: impl Into<Option<f64>>) {
        self.values.push((name.into(), value.into().filter(|v| v.is_finite())));
    }

    /// Adds a number of things.
    pub fn count(&mut self, name: &str, count: usize) {
        self.counts.push((name.into(), count as u64));
    }

    /// The figure of this name.
    pub fn value(&self, name: &str) -> Option<f64> {
        self.values.iter().find(|(n, _)| n == name)?.1
    }
}

impl Serialize for Scores {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("main_score", &self.value(&self.main))?;
        self.values.iter().try_for_each(|(name, value)| map.serialize_entry(name, value))?;
        self.counts.iter().try_for_each(|(name, count)| map.serialize_entry(name, count))?;
        if !self.subsets.is_empty() {
            let subsets = self.subsets.iter().map(|(name, scores)| (name, scores));
            map.serialize_entry("subsets", &subsets.collect::<std::collections::BTreeMap<_, _>>())?;
        }
        map.end()
    }
}
