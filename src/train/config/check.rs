//! What a setting's value may be.

use super::{Stage, TargetModule};
use crate::error::{Message, message};
use crate::text::template::{NONE, Template};
use std::fmt;

/// A setting with a value that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// Its key in a file.
    pub key: &'static str,
    /// What is wrong, in words that follow the setting's name: `is 0, at least 1 was wanted`.
    pub what: Message,
}

impl Invalid {
    /// The whole of it, under the key.
    pub fn message(&self) -> Message {
        message![format!("{:?} ", self.key), self.what.clone()]
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.message().fmt(f)
    }
}

/// What is wrong, if anything.
pub(super) type Verdict = Result<(), Message>;

/// More rows or tokens than anyone has: keeps the product of sizes from overflowing.
pub(super) const MOST: usize = 1 << 24;

/// From `least` to `most`.
pub(super) fn integer(least: usize, most: usize) -> impl Fn(&usize, Stage) -> Verdict {
    move |&n, _| match n {
        _ if n < least => Err(format!("is {n}, at least {least} was wanted").into()),
        _ if n > most => Err(format!("is {n}, at most {most} was wanted").into()),
        _ => Ok(()),
    }
}

fn number(wanted: &'static str, inside: fn(f64) -> bool) -> impl Fn(&f64, Stage) -> Verdict {
    move |&x, _| match x.is_finite() && inside(x) {
        true => Ok(()),
        false => Err(format!("is {x}, which is out of its range, {wanted}").into()),
    }
}

/// Above 0.
pub(super) fn number_above_0() -> impl Fn(&f64, Stage) -> Verdict {
    number("above 0", |x| x > 0.0)
}

/// 0 or above.
pub(super) fn number_from_0() -> impl Fn(&f64, Stage) -> Verdict {
    number("0 or above", |x| x >= 0.0)
}

/// A part of the whole, which may be none or all of it.
pub(super) fn fraction() -> impl Fn(&f64, Stage) -> Verdict {
    number("0 to 1", |x| (0.0..=1.0).contains(&x))
}

/// A part that is not all.
pub(super) fn fraction_below_1() -> impl Fn(&f64, Stage) -> Verdict {
    number("0 to below 1", |x| (0.0..1.0).contains(&x))
}

/// A part that is not none.
pub(super) fn fraction_above_0() -> impl Fn(&f64, Stage) -> Verdict {
    number("above 0 to 1", |x| x > 0.0 && x <= 1.0)
}

/// A check of what may be absent.
pub(super) fn optional<T>(check: impl Fn(&T, Stage) -> Verdict) -> impl Fn(&Option<T>, Stage) -> Verdict {
    move |value, stage| value.as_ref().map_or(Ok(()), |value| check(value, stage))
}

pub(super) fn batch(&rows: &usize, stage: Stage) -> Verdict {
    integer(1, MOST)(&rows, stage)?;
    match stage {
        Stage::Simcse | Stage::Supervised if rows < 2 => {
            Err("is 1: the other rows of a batch are the negatives; take at least 2".into())
        }
        _ => Ok(()),
    }
}

pub(super) fn slices(&count: &usize, stage: Stage) -> Verdict {
    integer(1, 1 << 16)(&count, stage)?;
    match count.is_power_of_two() {
        true => Ok(()),
        false => Err(format!("is {count}, a power of two was wanted").into()),
    }
}

pub(super) fn modules(list: &[TargetModule], _: Stage) -> Verdict {
    match list.is_empty() {
        true => Err("is empty: nothing would be trained".into()),
        false => Ok(()),
    }
}

pub(super) fn dims(list: &[usize], stage: Stage) -> Verdict {
    let twice = |&(i, d): &(usize, &usize)| list[..i].contains(d);
    match list.iter().enumerate().find(|at| *at.1 == 0 || twice(at)) {
        _ if stage == Stage::Mntp && !list.is_empty() => {
            Err(format!("is {list:?}: masked prediction makes no vectors; remove it").into())
        }
        Some((_, 0)) => Err(format!("is {list:?}, numbers from 1 were wanted").into()),
        Some((_, d)) => Err(format!("is {list:?}, which has {d} twice").into()),
        None => Ok(()),
    }
}

pub(super) fn weights(list: &[f64], _: Stage) -> Verdict {
    list.iter().try_for_each(|weight| number_from_0()(weight, Stage::Simcse))
}

pub(super) fn template(template: &Template, stage: Stage) -> Verdict {
    let what = "only supervised training puts a template around its texts, as in the reference; remove it";
    match stage == Stage::Supervised || *template == NONE {
        true => Ok(()),
        false => Err(format!("is {:?}: {what}", template.name).into()),
    }
}

pub(super) fn dataset(name: &String, stage: Stage) -> Verdict {
    let wanted = match (stage, name.as_str()) {
        (Stage::Simcse, "E5") => "\"Wiki1M\", a text a line",
        (Stage::Supervised, "Wiki1M") => "\"E5\", rows of JSON",
        _ => return Ok(()),
    };
    Err(format!("is {name:?}, the form of another stage's data; this one's is {wanted}").into())
}
