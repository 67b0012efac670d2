//! Planted bugs: each is reported at the line that says so in the source.

use super::*;

const SOURCES: [(&str, &str); 4] = [
    ("async_bugs_sm90.cu", include_str!("cuda/async_bugs_sm90.cu")),
    ("bugs.cu", include_str!("cuda/bugs.cu")),
    ("gemm.cu", include_str!("cuda/gemm.cu")),
    ("warpgroup_sm90.cu", include_str!("cuda/warpgroup_sm90.cu")),
];

/// Where the bug stands: `file.cu:line`.
fn planted(bug: &str) -> String {
    let mark = format!("BUG({bug})");
    let find = |(file, text): &(&str, &str)| {
        let line = text.lines().position(|l| l.contains(&mark))?;
        Some(format!("{file}:{}", line + 1))
    };
    SOURCES.iter().find_map(find).unwrap()
}

/// Found under every seed, at its line, with these words.
pub fn caught(ptx: &str, kernel: &str, launch: &Launch, args: &[Arg<'_>], bug: &str, words: &[&str]) {
    let place = planted(bug);
    for seed in SEEDS {
        let what = match run(ptx, kernel, &Launch { seed, ..*launch }, args) {
            Ok(_) => panic!("{kernel}: seed {seed}: not caught"),
            Err(e) => e.to_string(),
        };
        let here = what.contains(&format!("{place} ")) || what.contains(&format!("{place})"));
        // A race has two sides, and either may come second.
        let here = here || what.contains(&format!("{place},"));
        assert!(here, "{kernel}: seed {seed}: not at {place}:\n{what}");
        assert!(words.iter().all(|w| what.contains(w)), "{kernel}: seed {seed}: not {words:?}:\n{what}");
        assert!(what.contains(kernel) && what.contains("thread ("), "{what}");
    }
}

fn find(kernel: &str, launch: Launch, args: &[Arg<'_>], words: &[&str]) {
    caught(BUGS, kernel, &launch, args, kernel, words);
}

#[test]
fn accesses_out_of_bounds() {
    let (x, out) = (vec![1u8; 400], || Arg::Scratch(400));
    find(
        "out_of_bounds",
        line(1, 128),
        &[out(), Arg::In(&x), Arg::Int(100)],
        &["0 bytes past the end of arg0", "(100, 0, 0)"],
    );
    find("before_the_start", line(1, 64), &[out(), Arg::In(&x)], &["4 bytes before arg1", "(0, 0, 0)"]);
    find("shared_out_of_bounds", line(1, 64), &[out()], &["out of bounds", "shared memory"]);
    find("misaligned", line(1, 64), &[out(), Arg::In(&x)], &["misaligned"]);
}

#[test]
fn races() {
    let x = vec![0x3eu8; 4 * 512];
    let other = "the other access: bugs.cu:";
    find("shared_race", line(1, 128), &[Arg::Scratch(512), Arg::In(&x)], &["race: ", other]);
    find(
        "shared_race_behind",
        line(1, 128),
        &[Arg::Scratch(512), Arg::In(&noise_bytes()), Arg::Int(3)],
        &["race: ", other],
    );
    find("warp_race", line(1, 32), &[Arg::Scratch(128)], &["race: ", other]);
    find("global_race", line(4, 32), &[Arg::Scratch(4)], &["race: ", other, "arg0"]);
    find("lost_update", line(4, 32), &[Arg::In(&[0; 4])], &["race: ", other]);
}

fn noise_bytes() -> Vec<u8> {
    bytes_of(&noise(3 * 128, 9)).to_vec()
}

#[test]
fn reads_of_what_nothing_wrote() {
    let x = vec![0u8; 512];
    find(
        "uninitialised_shared",
        line(1, 128),
        &[Arg::Scratch(512), Arg::In(&x)],
        &["uninitialised", "shared memory+400"],
    );
    find(
        "uninitialised_global",
        line(1, 32),
        &[Arg::Scratch(128), Arg::Scratch(128)],
        &["uninitialised", "arg1+0"],
    );
}

#[test]
fn a_copy_that_nobody_waits_for() {
    let x = vec![0u8; 2 * 64 * 64];
    let args = [Arg::Scratch(4 * 64 * 64), Arg::In(&x), Arg::In(&x), Arg::Int(64), Arg::Int(64)];
    caught(GEMM, "gemm_no_wait", &line(1, 128), &args, "no_wait", &["cp.async.wait_group is missing"]);
}

#[test]
fn barriers_that_not_all_come_to() {
    find("divergent_barrier", line(1, 64), &[Arg::Scratch(256)], &["barrier: lanes 0xaaaaaaaa"]);
    find("early_exit", line(1, 64), &[Arg::Scratch(256), Arg::Int(40)], &["barrier: lanes 0xffffff00"]);
    find("missing_lane", line(1, 32), &[Arg::Scratch(128)], &["a shuffle that lanes 0xffff0000"]);
    find("named_barrier_deadlock", line(1, 64), &[Arg::Scratch(256)], &["deadlock"]);
}

#[test]
fn an_endless_loop_uses_up_its_budget() {
    let launch = Launch { budget: 10_000, ..line(1, 32) };
    find("waits_for_nobody", launch, &[Arg::In(&[0; 4]), Arg::Scratch(128)], &["more than 10000"]);
}
