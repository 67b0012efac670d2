//! The same command many times, on one thread or several: the same bytes.

use super::Job;
use crate::common::amount;

fn repeated(names: &[&'static str]) {
    let repeats = amount("LLM2VEC_REPEATS", 24);
    for name in names {
        let job = Job::new(name);
        let one: &[&str] = if job.trains() { &["--steps", "1"] } else { &[] };
        let flags = |threads: &'static str| [one, &["--threads", threads]].concat();
        let first = job.straight(&flags("1"));
        for repeat in 1..repeats.div_ceil(names.len()) {
            let again = job.straight(&flags(["1", "2", "3"][repeat % 3]));
            assert!(again == first, "{name}: repeat {repeat} differs");
        }
    }
    println!("{names:?}: {repeats} repeats in all, bit-equal");
}

#[test]
fn encode() {
    repeated(&["encode-safetensors"]);
}

#[test]
fn a_step_of_training() {
    repeated(&["mntp", "simcse", "supervised"]);
}
