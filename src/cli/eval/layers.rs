//! Lists of layers: `0-4,8,-1` or `all`.

use crate::error::{Error, Result};

/// The layers of a list, rising and each once, of a model with `count` blocks: 0 is the embedding, `count` the last.
pub fn parse(list: &str, count: usize) -> Result<Vec<usize>> {
    let wrong = |part: &str| {
        let wanted =
            format!("layers from 0 (the embedding) to {count}, -1 for the last, ranges as 0-{count}, or all");
        Error::usage(format!("--layers {list}: {part:?}; wanted are {wanted}"))
    };
    if list == "all" {
        return Ok((0..=count).collect());
    }
    let number = |text: &str| text.parse::<usize>().ok().filter(|n| *n <= count);
    let mut layers = Vec::new();
    for part in list.split(',').map(str::trim) {
        let range = match (part.strip_prefix('-'), part.split_once('-')) {
            (Some(back), _) => number(back).filter(|n| *n > 0).map(|n| count + 1 - n..=count + 1 - n),
            (None, Some((first, last))) => number(first).zip(number(last)).map(|(first, last)| first..=last),
            (None, None) => number(part).map(|n| n..=n),
        };
        layers.extend(range.filter(|range| !range.is_empty()).ok_or_else(|| wrong(part))?);
    }
    layers.sort_unstable();
    layers.dedup();
    Ok(layers)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn lists_of_layers() {
        assert_eq!(parse("all", 3).unwrap(), [0, 1, 2, 3]);
        assert_eq!(parse("2-3,0,-1, 2", 4).unwrap(), [0, 2, 3, 4]);
        assert_eq!(parse("-5", 5).unwrap(), [1]);
        for bad in ["", "5", "3-1", "-0", "a", "0-9", "1-", "--1"] {
            assert!(parse(bad, 4).unwrap_err().to_string().contains("0-4"), "{bad}");
        }
    }
}
