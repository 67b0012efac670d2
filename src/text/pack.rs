//! Packs: texts side by side without padding, up to a budget of tokens.

use std::ops::Range;

/// Indices of the texts of each pack: longest texts first, each pack filled up to `budget` tokens.
///
/// Texts of equal length keep their order. A text longer than the budget is a pack of its own.
pub fn pack(lengths: &[usize], budget: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(lengths[i]));
    let mut packs: Vec<Vec<usize>> = Vec::new();
    let mut used = budget;
    for i in order {
        if packs.is_empty() || used + lengths[i] > budget {
            packs.push(Vec::new());
            used = 0;
        }
        used += lengths[i];
        if let Some(last) = packs.last_mut() {
            last.push(i);
        }
    }
    packs
}

/// A pack: its sequences one after the other, as the graph takes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pack {
    /// `[N]`
    pub ids: Vec<i32>,
    /// [B + 1] first token of each sequence, then N.
    pub starts: Vec<i32>,
    /// [B, 2] the rows of each that are pooled.
    pub spans: Vec<i32>,
}

impl Pack {
    /// Joins sequences and their pooled spans.
    pub fn new<'a>(sequences: impl IntoIterator<Item = (&'a [u32], Range<usize>)>) -> Pack {
        let mut pack = Pack { starts: vec![0], ..Pack::default() };
        for (ids, span) in sequences {
            let first = pack.ids.len();
            pack.spans.extend([(first + span.start) as i32, (first + span.end) as i32]);
            pack.ids.extend(ids.iter().map(|&id| id as i32));
            pack.starts.push(pack.ids.len() as i32);
        }
        pack
    }
}
