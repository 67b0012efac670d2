//! Each call by which a command writes fails once, or from there on, or kills the command: what has a final name is whole,
//! the error is one line, nothing unfinished stays, and done again, it ends as if nothing had been.

use super::shim::{Call, Fault, calls, under};
use super::{Files, Job, comparable, leftovers, whole};
use crate::command::{good, str};
use crate::common::amount;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Output;

/// What is tried at each call, and whether it lasts.
const FAULTS: [(Fault, bool); 7] = [
    (Fault::Full, false),
    (Fault::Full, true),
    (Fault::Denied, false),
    (Fault::Readonly, true),
    (Fault::Io, false),
    (Fault::Io, true),
    (Fault::Kill, false),
];

/// How many runs ended how.
#[derive(Default)]
struct Ends {
    refused: usize,
    passed: usize,
    killed: usize,
}

/// One command, and what it leaves without faults.
struct Sweep {
    job: Job,
    straight: Files,
    /// With every checkpoint.
    kept: Files,
}

impl Sweep {
    fn new(name: &'static str) -> Sweep {
        let job = Job::new(name);
        let keep = |n| if job.trains() { vec!["--keep", n] } else { Vec::new() };
        let (straight, kept) = (job.straight(&keep("1")), job.straight(&keep("9")));
        Sweep { job, straight, kept }
    }

    fn run(&self, dir: &Path, fault: Option<(Fault, (usize, bool))>, log: &Path) -> Output {
        let keep: &[&str] = if self.job.trains() { &["--keep", "1"] } else { &[] };
        let mut command = self.job.command(dir, keep);
        if let Some((fault, at)) = fault {
            under(&mut command, dir, fault, at, log);
        }
        command.output().unwrap()
    }

    /// All faults, at some of the calls, evenly apart.
    fn all(&self) {
        let log = crate::command::folder();
        let log = log.path().join("calls");
        for (round, (fault, stays)) in FAULTS.into_iter().enumerate() {
            let dir = self.job.fresh();
            assert!(self.run(dir.path(), Some((fault, (0, false))), &log).status.success());
            assert_eq!(comparable(dir.path()), self.straight, "the shim alone changes something");
            let total = calls(&log).len();
            let tried = amount("LLM2VEC_FAULTS", 4).min(total);
            let mut ends = Ends::default();
            // Each round takes others, so that few samples see many calls.
            let first = |i: usize| 1 + (i * total + round * total / FAULTS.len()) / tried;
            for call in (0..tried).map(first) {
                self.at(fault, (call, stays), &log, &mut ends);
            }
            let Ends { refused, passed, killed } = ends;
            println!(
                "{} {fault:?}{}: {tried} of {total} calls; {refused} one error line, {passed} went on, {killed} killed",
                self.job.name,
                if stays { " and stays" } else { "" },
            );
        }
    }

    fn at(&self, fault: Fault, at: (usize, bool), log: &Path, ends: &mut Ends) {
        let dir = self.job.fresh();
        let output = self.run(dir.path(), Some((fault, at)), log);
        let calls = calls(log);
        let failed = &calls[(at.0 - 1).min(calls.len() - 1)];
        let what = format!("{} {fault:?} {at:?} {} {}", self.job.name, failed.name, failed.path);
        let said = String::from_utf8(output.stderr).unwrap();
        whole(dir.path(), &[&self.straight, &self.kept]);
        match output.status.code() {
            None => {
                assert_eq!((output.status.signal(), fault), (Some(9), Fault::Kill), "{what}: {said}");
                ends.killed += 1;
            }
            Some(0) => {
                let mut left = comparable(dir.path());
                left.retain(|name, _| self.straight.contains_key(name));
                assert!(left == self.straight, "{what}: other files, and no error: {said}");
                ends.passed += 1;
            }
            code => {
                assert_eq!(code, Some(1), "{what}: {said}");
                let errors = said.lines().filter(|line| line.starts_with("error: ")).count();
                assert!(errors == 1 && !said.contains("panicked"), "{what}: {said}");
                assert!(said.contains(str(dir.path())), "{what}: no path: {said}");
                ends.refused += 1;
            }
        }
        if fault != Fault::Kill && !cannot_remove(fault, at.1, failed) {
            assert_eq!(leftovers(dir.path()), [""; 0], "{what}: {said}");
        }
        self.again(dir.path(), &what);
    }

    /// The same without a fault: a run of training goes on, the others begin anew.
    fn again(&self, dir: &Path, what: &str) {
        let merged = self.job.name == "merge" && dir.join(self.job.output()).exists();
        if !merged {
            let keep: &[&str] = if self.job.trains() { &["--keep", "1"] } else { &[] };
            good(self.job.command(dir, keep));
            assert_eq!(leftovers(dir), [""; 0], "{what}, and then again");
        }
        let mut left = comparable(dir);
        left.retain(|name, _| !super::is_hidden(name));
        assert!(left == self.straight, "{what}, and then again: {:?}", left.keys());
    }
}

/// Whether an unfinished file has to stay: nothing can be removed, or this one could not.
fn cannot_remove(fault: Fault, stays: bool, call: &Call) -> bool {
    (stays && fault != Fault::Full) || ["unlink", "rmdir", "open"].contains(&call.name.as_str())
}

#[test]
fn encode_to_npy() {
    Sweep::new("encode-npy").all();
}

#[test]
fn encode_to_safetensors() {
    Sweep::new("encode-safetensors").all();
}

#[test]
fn encode_to_jsonl() {
    Sweep::new("encode-jsonl").all();
}

#[test]
fn merge() {
    Sweep::new("merge").all();
}

#[test]
fn eval() {
    Sweep::new("eval").all();
}

#[test]
fn mntp() {
    Sweep::new("mntp").all();
}

#[test]
fn simcse() {
    Sweep::new("simcse").all();
}

#[test]
fn supervised() {
    Sweep::new("supervised").all();
}
