//! How much a finding weighs, and what is collected while a launch goes on.

use super::finding::{Fault, Habit, Kind};
use std::collections::HashMap;

/// What is done about a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// It is noted, and the launch goes on.
    Note,
    /// It ends the launch, unless that is to keep going.
    Error,
}

/// How strictly a kernel is held to the rules. A finding is an error, with two exceptions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checks {
    /// What breaks a rule of the ISA but stands in NVIDIA's own headers and samples is an error too, not a note: see
    /// [`Habit`].
    pub strict: bool,
    /// The launch goes on behind an error where it can, and gives its counters at the end: [`crate::Emulator::findings`]
    /// says what was found. A read without a value gives what is there, one out of bounds zero; such a write is left out.
    pub keep_going: bool,
    /// Kinds that are notes, however strict. One behind which nobody can go on ends the launch all the same.
    pub allow: Vec<Kind>,
}

/// What was found, as often as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Of which kind.
    pub kind: Kind,
    /// How much it weighs.
    pub severity: Severity,
    /// The habit of NVIDIA's that it is, if it is one.
    pub habit: Option<Habit>,
    /// The report of the first of them.
    pub what: String,
    /// How many there were at this instruction.
    pub count: u64,
}

impl Checks {
    /// What is done about it.
    pub fn severity(&self, kind: Kind, habit: Option<Habit>) -> Severity {
        match self.allow.contains(&kind) || habit.is_some() && !self.strict {
            true => Severity::Note,
            false => Severity::Error,
        }
    }
}

/// What has been found so far: by instruction and kind, the first in full.
pub struct Collected {
    /// What is an error.
    pub checks: Checks,
    list: Vec<(Box<Fault>, u64)>,
    places: HashMap<(u32, Kind, Option<Habit>), usize>,
}

impl Collected {
    /// Nothing yet.
    pub fn new(checks: &Checks) -> Collected {
        Collected { checks: checks.clone(), list: Vec::new(), places: HashMap::new() }
    }

    /// Adds one, or gives it back if it ends the launch.
    pub fn add(&mut self, fault: Box<Fault>) -> Result<(), Box<Fault>> {
        if self.checks.severity(fault.kind, fault.habit) == Severity::Error && !self.checks.keep_going {
            return Err(fault);
        }
        self.count(fault, 1);
        Ok(())
    }

    fn count(&mut self, fault: Box<Fault>, times: u64) {
        let next = self.list.len();
        let place = *self.places.entry((fault.line, fault.kind, fault.habit)).or_insert(next);
        match self.list.get_mut(place) {
            Some((_, count)) => *count += times,
            None => self.list.push((fault, times)),
        }
    }

    /// Adds what others have found.
    pub fn append(&mut self, others: Collected) {
        others.list.into_iter().for_each(|(fault, count)| self.count(fault, count));
    }

    /// All of it, of this kernel.
    pub fn findings(self, kernel: &str) -> Vec<Finding> {
        let checks = self.checks;
        let finding = |(mut fault, count): (Box<Fault>, u64)| {
            fault.kernel = kernel.to_string();
            let severity = checks.severity(fault.kind, fault.habit);
            Finding { kind: fault.kind, severity, habit: fault.habit, what: fault.to_string(), count }
        };
        self.list.into_iter().map(finding).collect()
    }
}
