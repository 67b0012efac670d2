//! What is a note and what an error, and what goes on behind either.

use super::*;
use crate::ptx::{synchronising, without};
use ptx_emulator::{Error, Finding, Habit, Severity};

/// `first`: each thread adds 1 by a loop of `atom.cas`, whose first value is read plainly. `twin`: what is read is kept, and
/// the loop starts from zero.
const CAS: &str = "
.version 8.0
.target sm_80
.address_size 64
.visible .entry first(.param .u64 x, .param .u64 y)
{
    .reg .pred %q; .reg .b32 %r<6>; .reg .b64 %d<3>;
    ld.param.u64 %d0, [x]; ld.param.u64 %d1, [y];
    ld.global.u32 %r1, [%d0];
L:
    add.u32 %r2, %r1, 1;
    atom.global.cas.b32 %r3, [%d0], %r1, %r2;
    setp.ne.u32 %q, %r1, %r3;
    mov.u32 %r1, %r3;
    @%q bra L;
    ret;
}
.visible .entry twin(.param .u64 x, .param .u64 y)
{
    .reg .pred %q; .reg .b32 %r<6>; .reg .b64 %d<3>;
    ld.param.u64 %d0, [x]; ld.param.u64 %d1, [y];
    ld.global.u32 %r4, [%d0];
    mov.u32 %r1, 0;
L:
    add.u32 %r2, %r1, 1;
    atom.global.cas.b32 %r3, [%d0], %r1, %r2;
    setp.ne.u32 %q, %r1, %r3;
    mov.u32 %r1, %r3;
    @%q bra L;
    atom.global.max.u32 %r5, [%d1], %r4;
    ret;
}
";

/// `many`: each thread reads beyond x, and all write another number to the same place of y; thread 0 reads z before
/// anybody has written it.
const MANY: &str = "
.version 8.0
.target sm_80
.address_size 64
.visible .entry many(.param .u64 x, .param .u64 y, .param .u64 z)
{
    .reg .b32 %r<6>; .reg .b64 %d<6>;
    ld.param.u64 %d0, [x]; ld.param.u64 %d1, [y]; ld.param.u64 %d2, [z];
    mov.u32 %r0, %tid.x;
    mul.wide.u32 %d3, %r0, 4;
    add.u64 %d4, %d0, %d3;
    ld.global.u32 %r1, [%d4];
    add.u32 %r1, %r1, %r0;
    st.global.u32 [%d1], %r1;
    add.u64 %d5, %d2, %d3;
    ld.global.u32 %r2, [%d5];
    st.global.u32 [%d5], %r0;
    ret;
}
";

type Ran = Result<(Vec<Vec<u8>>, Counters)>;

fn checked(
    checks: &Checks,
    ptx: &str,
    kernel: &str,
    launch: &Launch,
    args: &[Arg<'_>],
) -> (Ran, Vec<Finding>) {
    let mut emulator = Emulator::new(Module::parse("test.ptx", ptx).unwrap()).unwrap();
    emulator.checks = checks.clone();
    let ran = run_on(&mut emulator, kernel, launch, args);
    (ran, emulator.findings().to_vec())
}

/// By default it is noted under every seed, and the launch is as any; strict checks report it.
fn note(habit: Habit, kind: Kind, ptx: &str, kernel: &str, launch: &Launch, args: &[Arg<'_>]) {
    let mut first = None;
    for seed in SEEDS {
        let launch = Launch { seed, ..*launch };
        let (ran, found) = checked(&Checks::default(), ptx, kernel, &launch, args);
        let (out, _) = ran.unwrap_or_else(|e| panic!("{kernel}: seed {seed}: {e}"));
        assert!(*first.get_or_insert(out.clone()) == out, "{kernel}: seed {seed}");
        assert!(!found.is_empty(), "{kernel}: seed {seed}: not noted");
        for it in found {
            assert_eq!((it.habit, it.kind, it.severity), (Some(habit), kind, Severity::Note), "{}", it.what);
            assert!(it.count > 0 && it.what.contains(habit.words()), "{}", it.what);
        }
        let strict = run(ptx, kernel, &launch, args).map(|_| ()).unwrap_err();
        assert_eq!(strict.kind(), Some(kind), "{strict}");
        let allowed = Checks { strict: true, allow: vec![kind], ..Checks::default() };
        assert!(checked(&allowed, ptx, kernel, &launch, args).0.is_ok());
    }
}

/// It is an error by default too, under every seed.
fn error(kind: Kind, ptx: &str, kernel: &str, launch: &Launch, args: &[Arg<'_>]) {
    for seed in SEEDS {
        let (ran, _) = checked(&Checks::default(), ptx, kernel, &Launch { seed, ..*launch }, args);
        let what = ran.map(|_| ()).expect_err(kernel);
        assert_eq!(what.kind(), Some(kind), "{kernel}: seed {seed}: {what}");
    }
}

#[test]
fn a_plain_first_read_before_a_loop_of_cas() {
    let args = [Arg::In(&[0; 4]), Arg::In(&[0; 4])];
    note(Habit::FirstRead, Kind::Race, CAS, "first", &line(4, 32), &args);
    error(Kind::Race, CAS, "twin", &line(4, 32), &args);
    let (ran, _) = checked(&Checks::default(), CAS, "first", &line(4, 32), &args);
    assert_eq!(i32s(&ran.unwrap().0[0]), [128]);
}

/// Without the reader's fence it is what NVIDIA's samples do; without the writers' it is wrong, and so is no barrier.
#[test]
fn the_last_block_without_a_fence() {
    let x = noise(2000, 1);
    let sum = [Arg::Scratch(4), Arg::Scratch(32), Arg::In(&[0; 4]), Arg::In(bytes_of(&x)), Arg::Int(2000)];
    let [(writers, _), (barrier, _), (reader, _)] = &synchronising(BASICS, "grid_sum")[..] else {
        panic!("three lines that order something");
    };
    note(Habit::LastBlock, Kind::Race, &without(BASICS, *reader), "grid_sum", &line(8, 64), &sum);
    error(Kind::Race, &without(BASICS, *writers), "grid_sum", &line(8, 64), &sum);
    let bare = without(&without(BASICS, *reader), *barrier);
    assert!(SEEDS.into_iter().any(|seed| {
        let launch = Launch { seed, ..line(8, 64) };
        checked(&Checks::default(), &bare, "grid_sum", &launch, &sum).0.is_err()
    }));
}

/// One thread begins the mbarrier and another copies, with a barrier between; or one does both at once.
#[test]
fn mbarrier_init_behind_a_barrier() {
    let ptx = include_str!("ptx/async_bugs_sm90.ptx");
    let x = noise(64, 5);
    let plane = asynchronous::plane(8, 8, [8, 8], Swizzle::None);
    let args = [Arg::Scratch(256), Arg::Map(bytes_of(&x), plane)];
    note(Habit::InitAndBarrier, Kind::Fence, ptx, "unfenced_init_box", &line(1, 64), &args);
    error(Kind::Fence, ptx, "unfenced_init", &line(1, 64), &[Arg::Scratch(256), Arg::In(bytes_of(&x))]);
}

#[test]
fn all_findings_with_their_counts() {
    // One chunk, and several: their blocks write to one place, too.
    for blocks in [1, 40] {
        let args = [Arg::In(&[1; 4 * 24]), Arg::In(&[0; 4]), Arg::Scratch(4 * 32)];
        let launch = line(blocks, 32);
        let keep = Checks { keep_going: true, ..Checks::default() };
        let (ran, found) = checked(&keep, MANY, "many", &launch, &args);
        let (out, counters) = ran.unwrap();
        assert_eq!(counters.total.issued, 13 * u64::from(blocks));
        assert_eq!(i32s(&out[2]), (0..32).collect::<Vec<i32>>());
        let all = |kind: Kind| found.iter().filter(move |f| f.kind == kind);
        let count = |kind: Kind| all(kind).map(|f| f.count).sum::<u64>();
        assert_eq!(count(Kind::OutOfBounds), 8 * u64::from(blocks), "{found:#?}");
        assert!(count(Kind::Race) >= 31 * u64::from(blocks.min(8)), "{found:#?}");
        assert!(count(Kind::Uninitialised) >= 32, "{found:#?}");
        assert!(
            found.iter().all(|f| f.severity == Severity::Error && f.what.contains(" in many at test.ptx:"))
        );
        // One of a kind is a note; the others are not.
        let allow = vec![Kind::OutOfBounds, Kind::Uninitialised];
        let (ran, some) = checked(&Checks { allow, ..Checks::default() }, MANY, "many", &launch, &args);
        assert_eq!(ran.map(|_| ()).unwrap_err().kind(), Some(Kind::Race));
        assert!(!some.is_empty() && some.iter().all(|f| f.severity == Severity::Note));
        // The order of chunks is theirs, whoever runs them.
        for workers in [1, 8] {
            let again = checked(&keep, MANY, "many", &Launch { workers, ..launch }, &args).1;
            assert_eq!(again, found, "{workers} workers");
        }
    }
    // The next launch has findings of its own.
    let mut emulator = Emulator::new(Module::parse("test.ptx", MANY).unwrap()).unwrap();
    emulator.checks.keep_going = true;
    let args = [Arg::In(&[1; 4]), Arg::In(&[0; 4]), Arg::In(&[0; 4])];
    run_on(&mut emulator, "many", &line(1, 2), &args).unwrap();
    assert!(!emulator.findings().is_empty());
    run_on(&mut emulator, "many", &line(1, 1), &args).unwrap();
    assert_eq!(emulator.findings(), []);
}

#[test]
fn kinds_have_words() {
    for kind in Kind::ALL {
        assert_eq!(kind.word().parse(), Ok(kind));
    }
    let Err(Error::Usage(what)) = "races".parse::<Kind>() else { panic!("a kind of finding") };
    assert!(what.contains("races: no kind of finding; there are: out-of-bounds, misaligned"), "{what}");
}
