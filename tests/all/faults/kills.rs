//! Kills at random moments of `encode` and `merge`; `training::resume` has those of training.

use super::{Job, comparable, leftovers, whole};
use crate::command::good;
use crate::common::amount;
use llm2vec::rng::philox;
use std::os::unix::process::ExitStatusExt;
use std::thread::sleep;
use std::time::Instant;

fn killed(name: &'static str) {
    let job = Job::new(name);
    let started = Instant::now();
    let straight = job.straight(&[]);
    let time = started.elapsed();
    let wanted = amount("LLM2VEC_KILLS", 20);
    let (mut dir, mut kills, mut within, mut ends) = (job.fresh(), 0, 0, 0);
    while kills < wanted {
        let draw = philox([kills as u32, ends, 1, 0], [8, name.len() as u32]);
        let threads = (1 + draw[1] % 2).to_string();
        let mut child = job.command(dir.path(), &["--threads", &threads]).spawn().unwrap();
        sleep(time.mul_f64(f64::from(draw[0]) / f64::from(u32::MAX)));
        child.kill().unwrap();
        let ended = child.wait().unwrap();
        whole(dir.path(), &[&straight]);
        if ended.signal().is_none() {
            assert!(ended.success(), "{ended}");
            assert_eq!(comparable(dir.path()), straight);
            (dir, ends) = (job.fresh(), ends + 1);
            continue;
        }
        kills += 1;
        if name == "merge" && dir.path().join(job.output()).exists() {
            // Whole, and a second merge would refuse to write over it.
            (dir, ends) = (job.fresh(), ends + 1);
            continue;
        }
        within += usize::from(!leftovers(dir.path()).is_empty());
    }
    good(job.command(dir.path(), &[]));
    assert_eq!(comparable(dir.path()), straight);
    println!(
        "{name}: {kills} kills, {within} with an output begun, {ends} at its end; a straight run takes {time:?}"
    );
}

#[test]
fn encode() {
    killed("encode-npy");
}

#[test]
fn merge() {
    killed("merge");
}
