//! Planted bugs: each is reported at the line that says so in the source.

use super::*;

const SOURCES: [(&str, &str); 5] = [
    ("asserts.cu", include_str!("cuda/asserts.cu")),
    ("async_bugs_sm90.cu", include_str!("cuda/async_bugs_sm90.cu")),
    ("bugs.cu", include_str!("cuda/bugs.cu")),
    ("gemm.cu", include_str!("cuda/gemm.cu")),
    ("warpgroup_sm90.cu", include_str!("cuda/warpgroup_sm90.cu")),
];

/// Where the bug stands: `file.cu:line`.
pub fn planted(bug: &str) -> String {
    let mark = format!("BUG({bug})");
    let find = |(file, text): &(&str, &str)| {
        let line = text.lines().position(|l| l.contains(&mark))?;
        Some(format!("{file}:{}", line + 1))
    };
    SOURCES.iter().find_map(find).unwrap()
}

/// Whether a report's first line names this place, or a caller's of what was inlined. A race has two sides, and so have two
/// `wgmma` where one was wanted: either may come second.
pub fn names(report: &str, place: &str) -> bool {
    let has = |side: &str| side.split([' ', ',', '(', ')']).any(|word| word == place);
    let main = report.split_once(" (PTX line ").map_or("", |l| l.0);
    let other = |line: &str| line.starts_with("  the other access: ") || line.contains(" is at a wgmma, ");
    has(main) || report.lines().any(|line| other(line) && has(line))
}

/// Found under every seed, of this kind (or of one of several, where it lies with the schedule), at its line, with these
/// words.
pub fn caught(
    ptx: &str,
    kernel: &str,
    launch: &Launch,
    args: &[Arg<'_>],
    (bug, kind): (&str, &str),
    words: &[&str],
) {
    let place = planted(bug);
    let kinds: Vec<Kind> = kind.split(" or ").map(|word| word.parse().unwrap()).collect();
    for seed in SEEDS {
        let Err(error) = run(ptx, kernel, &Launch { seed, ..*launch }, args) else {
            panic!("{kernel}: seed {seed}: not caught");
        };
        let (found, what) = (error.kind().unwrap(), error.to_string());
        assert!(kinds.contains(&found), "{kernel}: seed {seed}: not {kind}:\n{what}");
        assert!(what.starts_with(&format!("{found} in {kernel} at ")), "{what}");
        assert!(names(&what, &place), "{kernel}: seed {seed}: not at {place}:\n{what}");
        assert!(words.iter().all(|w| what.contains(w)), "{kernel}: seed {seed}: not {words:?}:\n{what}");
        assert!(what.contains("thread ("), "{what}");
    }
}

/// A kernel with its bug is caught at its line; the same without it, on the same arguments, is clean under every seed.
fn find(kernel: &str, kind: &str, launch: Launch, args: &[Arg<'_>], words: &[&str]) {
    caught(BUGS, kernel, &launch, args, (kernel, kind), words);
    run_all(BUGS, &format!("{kernel}_right"), &launch, args);
}

#[test]
fn accesses_out_of_bounds() {
    let (x, out) = (vec![1u8; 400], |n: usize| Arg::Scratch(n));
    let at = ["0 bytes past the end of arg0", "(100, 0, 0)"];
    find("out_of_bounds", "out-of-bounds", line(1, 128), &[out(400), Arg::In(&x), Arg::Int(100)], &at);
    let at = ["4 bytes before arg1", "(0, 0, 0)"];
    find("before_the_start", "out-of-bounds", line(1, 64), &[out(256), Arg::In(&x)], &at);
    find(
        "shared_out_of_bounds",
        "out-of-bounds",
        line(1, 64),
        &[out(256)],
        &["out of bounds", "shared memory"],
    );
    find("misaligned", "misaligned", line(1, 64), &[out(256), Arg::In(&x)], &["misaligned"]);
}

/// The kernel is right as long as the array is there.
#[test]
fn memory_that_was_freed() {
    for (kernel, words) in [("freed_read", ["freed", "arg1"]), ("freed_written", ["freed", "arg1"])] {
        let args = [Arg::Scratch(256), Arg::Freed(256)];
        caught(BUGS, kernel, &line(1, 64), &args, (kernel, "access"), &words);
        run_all(BUGS, kernel, &line(1, 64), &[Arg::Scratch(256), Arg::In(&[7; 256])]);
    }
}

#[test]
fn races() {
    let x = vec![0x3eu8; 4 * 512];
    let find = |kernel: &str, launch: Launch, args: &[Arg<'_>], words: &[&str]| {
        find(kernel, "race", launch, args, &[&["the other access: bugs.cu:"], words].concat());
    };
    find("shared_race", line(1, 128), &[Arg::Scratch(512), Arg::In(&x)], &["shared memory+"]);
    let rounds = [Arg::Scratch(512), Arg::In(&noise_bytes()), Arg::Int(3)];
    find("shared_race_behind", line(1, 128), &rounds, &["shared memory+"]);
    find("warp_race", line(1, 32), &[Arg::Scratch(128)], &["shared memory+"]);
    find("global_race", line(4, 32), &[Arg::Scratch(4)], &["arg0"]);
    find("lost_update", line(4, 32), &[Arg::In(&[0; 4])], &["arg0"]);
}

fn noise_bytes() -> Vec<u8> {
    bytes_of(&noise(3 * 128, 9)).to_vec()
}

#[test]
fn reads_of_what_nothing_wrote() {
    let x = vec![0u8; 512];
    let find = |kernel: &str, launch: Launch, args: &[Arg<'_>], words: &[&str]| {
        find(kernel, "uninitialised", launch, args, words);
    };
    find("uninitialised_shared", line(1, 128), &[Arg::Scratch(512), Arg::In(&x)], &["shared memory+400"]);
    find("uninitialised_global", line(1, 32), &[Arg::Scratch(128), Arg::Scratch(128)], &["arg1+0"]);
    find("uninitialised_local", line(1, 32), &[Arg::Scratch(128), Arg::Int(5)], &["local memory"]);
    find("undefined_stored", line(1, 32), &[Arg::Scratch(128)], &["register"]);
    find("undefined_branch", line(1, 32), &[Arg::Scratch(128)], &["predicate that nothing has written"]);
}

#[test]
fn a_copy_that_nobody_waits_for() {
    let x = vec![0u8; 2 * 64 * 64];
    let args = [Arg::Scratch(4 * 64 * 64), Arg::In(&x), Arg::In(&x), Arg::Int(64), Arg::Int(64)];
    let bug = ("no_wait", "uninitialised");
    caught(GEMM, "gemm_no_wait", &line(1, 128), &args, bug, &["cp.async.wait_group is missing"]);
    judge_all(GEMM, "gemm", &line(1, 128), &args, |out| assert!(out[0].iter().all(|b| *b == 0)));
}

#[test]
fn barriers_that_not_all_come_to() {
    let out = || Arg::Scratch(256);
    find("divergent_barrier", "barrier", line(1, 64), &[out()], &["lanes 0xaaaaaaaa"]);
    find("early_exit", "barrier", line(1, 64), &[out(), Arg::Int(40)], &["lanes 0xffffff00"]);
    find("missing_lane", "barrier", line(1, 32), &[Arg::Scratch(128)], &["a shuffle that lanes 0xffff0000"]);
    find(
        "named_barrier_deadlock",
        "deadlock",
        line(1, 64),
        &[out()],
        &["barrier 1 of the block, to which 32 of 64 threads have come, that never opens"],
    );
}

#[test]
fn an_endless_loop_uses_up_its_budget() {
    let launch = Launch { budget: 10_000, ..line(1, 64) };
    find("waits_for_nobody", "budget", launch, &[Arg::In(&[0; 4]), Arg::Scratch(256)], &["more than 10000"]);
}
