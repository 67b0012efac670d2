//! Packs: texts side by side without padding, up to a budget of tokens.

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
