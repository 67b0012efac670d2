//! Queries and what answers them, by number: a row's texts are read again where they are wanted.

use crate::error::Result;
use crate::train::forms::{self, Form};
use crate::train::rows::{Kind, Report, RowText, Rows};
use std::collections::HashSet;
use std::collections::hash_map::{Entry, HashMap, RandomState};
use std::hash::BuildHasher;
use std::ops::Range;
use std::path::Path;

/// Tells texts apart by 64 bits: of millions of texts, the texts would be much of the memory. White space around a text
/// is none of it.
#[derive(Default)]
pub(super) struct Identity(RandomState);

impl Identity {
    pub(super) fn hash(&self, text: &str) -> u64 {
        self.0.hash_one(text.trim())
    }
}

/// The rows of a file of pairs.
pub(super) struct Pairs {
    rows: Rows,
    /// By row, its query; none for a row that says nothing new.
    query_of: Vec<Option<u32>>,
    /// By query, the first row with it.
    first: Vec<u32>,
    /// By positive, the first row with it and its place there.
    places: Vec<(u32, u32)>,
    /// By query, where its positives start in `positives`, and the end.
    starts: Vec<usize>,
    /// Of one query after the other, in order.
    positives: Vec<u32>,
    /// Queries and positives by what their texts hash to.
    queries: HashMap<u64, u32>,
    known: HashMap<u64, u32>,
    /// What tells texts apart.
    pub(super) identity: Identity,
}

impl Pairs {
    /// Reads through a file. Equal queries are one, with the positives of all their rows.
    pub(super) fn open(path: &Path, strict: bool) -> Result<Pairs> {
        let mut rows = Rows::open(path, Kind::Triple, None, strict)?;
        let identity = Identity::default();
        let (mut queries, mut known) = (HashMap::new(), HashMap::new());
        let (mut query_of, mut first, mut places) = (Vec::new(), Vec::new(), Vec::new());
        let mut links: HashSet<(u32, u32)> = HashSet::new();
        for i in 0..rows.report.rows {
            let (_, form) = form(&mut rows, i)?;
            let number = |map: &mut HashMap<u64, u32>, text: &str| {
                let next = map.len() as u32;
                match map.entry(identity.hash(text)) {
                    Entry::Occupied(there) => (*there.get(), false),
                    Entry::Vacant(free) => (*free.insert(next), true),
                }
            };
            let (query, new) = number(&mut queries, &form.query);
            if new {
                first.push(i as u32);
            }
            let mut says = false;
            for (place, text) in form.positives.iter().enumerate() {
                let (positive, new) = number(&mut known, text);
                if new {
                    places.push((i as u32, place as u32));
                }
                says |= links.insert((query, positive));
            }
            query_of.push(says.then_some(query));
        }
        let mut links: Vec<(u32, u32)> = links.into_iter().collect();
        links.sort_unstable();
        let starts = (0..=first.len()).map(|query| links.partition_point(|link| (link.0 as usize) < query));
        let (starts, positives) = (starts.collect(), links.iter().map(|link| link.1).collect());
        Ok(Pairs { rows, query_of, first, places, starts, positives, queries, known, identity })
    }

    /// What was found in the file.
    pub(super) fn report(&self) -> &Report {
        &self.rows.report
    }

    /// Queries, each counted once.
    pub(super) fn queries(&self) -> usize {
        self.first.len()
    }

    /// Texts that are positives, each counted once.
    pub(super) fn texts(&self) -> usize {
        self.places.len()
    }

    /// Pairs of a query and a positive of its own, each counted once.
    pub(super) fn links(&self) -> usize {
        self.positives.len()
    }

    /// By row, the number of its query; none for a row whose pairs all stand in earlier ones.
    pub(super) fn rows(&self) -> &[Option<u32>] {
        &self.query_of
    }

    /// The links of a query.
    pub(super) fn links_of(&self, query: usize) -> Range<usize> {
        self.starts[query]..self.starts[query + 1]
    }

    /// The most positives that one query has.
    pub(super) fn most_positives(&self) -> usize {
        self.starts.windows(2).map(|edge| edge[1] - edge[0]).max().unwrap_or(0)
    }

    /// Whether a text, by its number among positives, answers a query.
    pub(super) fn answers(&self, query: usize, positive: u32) -> bool {
        self.positives[self.links_of(query)].binary_search(&positive).is_ok()
    }

    /// The number among positives of the text with this hash.
    pub(super) fn positive(&self, hash: u64) -> Option<u32> {
        self.known.get(&hash).copied()
    }

    /// The number of the query that is the text with this hash.
    pub(super) fn query(&self, hash: u64) -> Option<u32> {
        self.queries.get(&hash).copied()
    }

    /// Links by positive: its number, the query's and the link's, in order.
    pub(super) fn answered(&self) -> Vec<[u32; 3]> {
        let of_query = |query: usize| {
            self.links_of(query).map(move |link| [self.positives[link], query as u32, link as u32])
        };
        let mut answered: Vec<[u32; 3]> = (0..self.queries()).flat_map(of_query).collect();
        answered.sort_unstable();
        answered
    }

    /// The row where a query stands first, and what it is there.
    pub(super) fn query_form(&mut self, query: usize) -> Result<(RowText, Form)> {
        form(&mut self.rows, self.first[query] as usize)
    }

    /// A row.
    pub(super) fn form(&mut self, row: usize) -> Result<Form> {
        form(&mut self.rows, row).map(|(_, form)| form)
    }

    /// The text of a positive, and the line of its row.
    pub(super) fn text(&mut self, positive: usize) -> Result<(usize, String)> {
        let (row, place) = self.places[positive];
        let (row, mut form) = form(&mut self.rows, row as usize)?;
        Ok((row.line, form.positives.swap_remove(place as usize)))
    }
}

fn form(rows: &mut Rows, i: usize) -> Result<(RowText, Form)> {
    let row = rows.read(i)?;
    let form = forms::triple(&row.text).map_err(|_| rows.changed(&row))?;
    Ok((row, form))
}
