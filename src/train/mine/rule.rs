//! Which of a query's nearest documents become its negatives: sentence-transformers' `mine_hard_negatives`.

use crate::error::{Error, Result, Setting, message};
use crate::rng::Stream;

/// How negatives are taken from those that are left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Sampling {
    /// The most similar.
    #[default]
    Top,
    /// Any of them, each as likely.
    Random,
}

/// What a negative has to be. Scores are cosines; a margin is kept from the least similar of a query's positives.
///
/// A query's candidates are the `range_max` most similar documents that are not positives of its own. Margins and bounds
/// take some away; of those that are left the first `range_min` are passed over, then `negatives` are taken. Sums and
/// products are f32, as there, so that a candidate at a bound falls on the same side.
///
/// In sentence-transformers 6.2 positives take up places of the candidates, and as many places are added as the query with
/// the most positives of all has rows: a query's candidates go deeper where another has more positives. Here they do not.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "cli", derive(clap::Args))]
pub struct Rule {
    /// Negatives of a query
    #[cfg_attr(
        feature = "cli",
        arg(
            long,
            env = "LLM2VEC_NEGATIVES",
            alias = "num-negatives",
            value_name = "N",
            default_value_t = 3,
            help_heading = "Selection"
        )
    )]
    pub negatives: usize,
    /// Pass over the N most similar of those that margins and bounds leave
    #[cfg_attr(
        feature = "cli",
        arg(
            long,
            env = "LLM2VEC_RANGE_MIN",
            value_name = "N",
            default_value_t = 0,
            help_heading = "Selection"
        )
    )]
    pub range_min: usize,
    /// Candidates of a query: its N most similar documents [default: range-min + negatives + the most positives that a query has; with a margin or --max-score ten times the negatives]
    #[cfg_attr(
        feature = "cli",
        arg(long, env = "LLM2VEC_RANGE_MAX", value_name = "N", help_heading = "Selection")
    )]
    pub range_max: Option<usize>,
    /// Highest cosine of a negative
    #[cfg_attr(
        feature = "cli",
        arg(
            long,
            env = "LLM2VEC_MAX_SCORE",
            value_name = "COSINE",
            allow_negative_numbers = true,
            help_heading = "Selection"
        )
    )]
    pub max_score: Option<f32>,
    /// Lowest cosine of a negative
    #[cfg_attr(
        feature = "cli",
        arg(
            long,
            env = "LLM2VEC_MIN_SCORE",
            value_name = "COSINE",
            allow_negative_numbers = true,
            help_heading = "Selection"
        )
    )]
    pub min_score: Option<f32>,
    /// A negative's cosine is at least this much below that of the query's least similar positive
    #[cfg_attr(
        feature = "cli",
        arg(
            long,
            env = "LLM2VEC_ABSOLUTE_MARGIN",
            value_name = "COSINE",
            allow_negative_numbers = true,
            help_heading = "Selection"
        )
    )]
    pub absolute_margin: Option<f32>,
    /// Likewise, as a part of that positive's cosine: 0.05 is the 95 % of NV-Retriever
    #[cfg_attr(
        feature = "cli",
        arg(
            long,
            env = "LLM2VEC_RELATIVE_MARGIN",
            value_name = "PART",
            allow_negative_numbers = true,
            help_heading = "Selection"
        )
    )]
    pub relative_margin: Option<f32>,
    /// Take the most similar of those that are left, or any
    #[cfg_attr(
        feature = "cli",
        arg(
            long,
            env = "LLM2VEC_SAMPLING",
            alias = "sampling-strategy",
            value_name = "HOW",
            default_value = "top",
            help_heading = "Selection"
        )
    )]
    pub sampling: Sampling,
    /// Seed of random sampling
    #[cfg_attr(
        feature = "cli",
        arg(long, env = "LLM2VEC_SEED", value_name = "N", default_value_t = 42, help_heading = "Selection")
    )]
    pub seed: u64,
}

/// Three of each query, the most similar.
impl Default for Rule {
    fn default() -> Rule {
        Rule {
            negatives: 3,
            range_min: 0,
            range_max: None,
            max_score: None,
            min_score: None,
            absolute_margin: None,
            relative_margin: None,
            sampling: Sampling::Top,
            seed: 42,
        }
    }
}

/// A document that was found: its cosine and its number.
pub type Found = (f32, u32);

/// Candidates that were taken away, by what did so first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TakenAway {
    /// All candidates.
    pub candidates: u64,
    /// By `absolute_margin`.
    pub absolute_margin: u64,
    /// By `relative_margin`.
    pub relative_margin: u64,
    /// By `max_score`.
    pub max_score: u64,
    /// By `min_score`.
    pub min_score: u64,
}

/// The stream that samples, apart from those that shuffle and mask.
const SAMPLE: u32 = 0x4D49_0001;

impl Rule {
    /// Candidates of a query where the most positives of one are so many: `range_max`, or what sentence-transformers
    /// takes. An error where they are too few for the negatives.
    pub fn candidates(&self, most_positives: usize) -> Result<usize> {
        let taken_away = [self.max_score, self.absolute_margin, self.relative_margin];
        let room = if taken_away.iter().any(Option::is_some) { 10 } else { 1 };
        let default = self.negatives.saturating_mul(room).saturating_add(self.range_min);
        let most = self.range_max.unwrap_or(default.saturating_add(most_positives));
        if self.negatives == 0 {
            return Err(Error::usage(message![Setting::Negatives, " 0: expected 1 or more"]));
        }
        let given = [self.max_score, self.min_score, self.absolute_margin, self.relative_margin];
        if given.into_iter().flatten().any(|bound| !bound.is_finite()) {
            return Err(Error::usage("a bound or margin of cosines is NaN or infinity; a number was wanted"));
        }
        if most.saturating_sub(self.range_min) < self.negatives {
            let (n, min) = (self.negatives, self.range_min);
            return Err(Error::usage(message![
                Setting::RangeMax,
                format!(" {most}: the {n} "),
                Setting::Negatives,
                " come after the first ",
                format!("{min} ("),
                Setting::RangeMin,
                format!("); expected {} or more", n.saturating_add(min))
            ]));
        }
        Ok(most)
    }

    /// What takes a candidate of this score away, if anything does.
    fn bound<'a>(&self, score: f32, positive: f32, taken_away: &'a mut TakenAway) -> Option<&'a mut u64> {
        let TakenAway { absolute_margin, relative_margin, max_score, min_score, .. } = taken_away;
        if self.absolute_margin.is_some_and(|margin| score + margin > positive) {
            return Some(absolute_margin);
        }
        // A part of the size, not of the number: below 0, less of it would be more similar.
        if self.relative_margin.is_some_and(|margin| score > positive - positive.abs() * margin) {
            return Some(relative_margin);
        }
        if self.max_score.is_some_and(|most| score > most) {
            return Some(max_score);
        }
        self.min_score.is_some_and(|least| score < least).then_some(min_score)
    }

    /// The negatives of query number `query`, best first, at most as many as are wanted: of `candidates`, best first and
    /// without positives, where `positive` is the score of its least similar positive. Counts what was taken away.
    pub fn select(
        &self,
        query: u32,
        candidates: &[Found],
        positive: f32,
        taken_away: &mut TakenAway,
    ) -> Vec<Found> {
        taken_away.candidates += candidates.len() as u64;
        let mut left: Vec<Found> = Vec::with_capacity(candidates.len());
        for candidate in candidates {
            match self.bound(candidate.0, positive, taken_away) {
                Some(count) => *count += 1,
                None => left.push(*candidate),
            }
        }
        left.drain(..self.range_min.min(left.len()));
        if self.sampling == Sampling::Random && left.len() > self.negatives {
            let mut places: Vec<usize> = (0..left.len()).collect();
            Stream::new(self.seed, [SAMPLE, query, 0]).shuffle(&mut places);
            places.truncate(self.negatives);
            places.sort_unstable();
            left = places.into_iter().map(|place| left[place]).collect();
        }
        left.truncate(self.negatives);
        left
    }
}
