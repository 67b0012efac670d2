//! The best evaluation of a run so far, and how long ago it was.

use serde::{Deserialize, Serialize};

/// The best evaluation so far.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// The step that it was made after.
    pub step: u64,
    /// Its first figure.
    pub value: f64,
    /// Evaluations since.
    pub since: usize,
}

impl Best {
    /// Takes an evaluation into account; whether it is the best. One that is no number never is.
    pub fn judge(best: &mut Option<Best>, step: u64, value: f64, rises: bool) -> bool {
        let better = |before: f64| if rises { value > before } else { value < before };
        match best {
            Some(best) if !better(best.value) => best.since += 1,
            None if value.is_nan() => return false,
            _ => {
                *best = Some(Best { step, value, since: 0 });
                return true;
            }
        }
        false
    }
}

impl From<Best> for [u64; 3] {
    fn from(best: Best) -> [u64; 3] {
        [best.step, best.value.to_bits(), best.since as u64]
    }
}

impl From<[u64; 3]> for Best {
    fn from([step, value, since]: [u64; 3]) -> Best {
        Best { step, value: f64::from_bits(value), since: since as usize }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equals_is_the_best_and_no_number_never_is() {
        let mut best = None;
        let mut judge = |step, value, rises| (Best::judge(&mut best, step, value, rises), best);
        assert_eq!(judge(0, f64::NAN, false), (false, None));
        let at = |step, value, since| Some(Best { step, value, since });
        assert_eq!(judge(1, 2.0, false), (true, at(1, 2.0, 0)));
        assert_eq!(judge(2, 2.0, false), (false, at(1, 2.0, 1)));
        assert_eq!(judge(3, f64::NAN, false), (false, at(1, 2.0, 2)));
        assert_eq!(judge(4, 1.0, false), (true, at(4, 1.0, 0)));
        assert_eq!(judge(5, 1.5, true), (true, at(5, 1.5, 0)));
    }
}
