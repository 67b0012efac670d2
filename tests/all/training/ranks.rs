//! Ranks of MPI: as many as there are, they train what one process trains, bit for bit, and any of them may fail.
//!
//! `mpirun` starts them, or what `MPIRUN` names (`mpirun.mpich`, of a build against MPICH); where there is none, these tests say
//! "skipped", or fail under `REQUIRE_MPI=1`.

use super::resume::Case;
use super::{Data, STAGES, log, same_run, train};
use crate::command::{Tiny, compiled, failed, folder, good, llm2vec, str};
use crate::common::amount;
use llm2vec::device::nccl;
use llm2vec::rng::philox;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// No run of these takes longer, unless it waits for ever.
const PATIENCE: Duration = Duration::from_secs(120);

/// A rank's number in a shell, by Open MPI's variable or MPICH's.
const RANK: &str = "${OMPI_COMM_WORLD_RANK-$PMI_RANK}";

/// What starts ranks.
fn launcher() -> Command {
    Command::new(std::env::var_os("MPIRUN").unwrap_or("mpirun".into()))
}

/// Whether Open MPI's starts them, not MPICH's.
fn is_open_mpi() -> bool {
    let version = launcher().arg("--version").output().unwrap().stdout;
    String::from_utf8_lossy(&version).contains("Open MPI")
}

fn built() -> bool {
    let there = launcher().arg("--version").output().is_ok();
    if !there {
        let name = launcher().get_program().to_string_lossy().into_owned();
        assert!(std::env::var_os("REQUIRE_MPI").is_none(), "there is no {name}");
        println!("skipped: no {name}");
    }
    there
}

impl Case {
    /// Epochs end, batches are short, several make a step.
    fn alone(&self, out: &Path, flags: &[&str]) -> Command {
        let (valid, pairs) = (self.data.validation(), self.data.pairs());
        let below = str(self.below.path());
        let own = match self.stage {
            "mntp" => {
                vec![
                    "--batch",
                    "5",
                    "--accumulation",
                    "2",
                    "--train-head",
                    "--grouping",
                    "apart",
                    "--validation",
                    str(&valid),
                ]
            }
            "simcse" => vec!["--batch", "7", "--grad-cache", "3", "--validation", str(&pairs), "--keep-best"],
            _ => vec![
                "--batch",
                "5",
                "--accumulation",
                "2",
                "--mask-false-negatives",
                "--adapter",
                below,
                "--recompute",
            ],
        };
        let common =
            ["--max-length", "24", "--lr", "1e-2", "--rank", "4", "--eval-steps", "3", "--epochs", "100"];
        train(self.stage, self.tiny.dir.path(), &self.data, out, &[&common, &own[..], flags].concat())
    }

    fn on(&self, ranks: usize, out: &Path, flags: &[&str]) -> Command {
        mpirun(ranks, &self.alone(out, flags))
    }
}

/// The same command on so many ranks.
fn mpirun(ranks: usize, command: &Command) -> Command {
    let mut run = launcher();
    if is_open_mpi() {
        run.args(["--allow-run-as-root", "--oversubscribe", "--bind-to", "none"]);
    }
    run.args(["-n", &ranks.to_string()]).arg(command.get_program()).args(command.get_args());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => run.env(key, value),
            None => run.env_remove(key),
        };
    }
    run.env("RAYON_NUM_THREADS", "1").stdin(Stdio::null());
    run
}

/// Its end, which comes.
fn ended(mut child: Child) -> Output {
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("it has not come to an end");
        }
        sleep(Duration::from_millis(20));
    }
    child.wait_with_output().unwrap()
}

fn spawned(mut command: Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn ranks_train_what_one_process_trains() {
    if !built() {
        return;
    }
    for stage in STAGES {
        let (case, dir) = (Case::new(stage), folder());
        let flags = ["--steps", "7", "--save-steps", "3", "--slices", "4"];
        let one = dir.path().join("one");
        good(case.alone(&one, &flags));
        for ranks in [1, 2, 4] {
            let out = dir.path().join(format!("of-{ranks}"));
            good(case.on(ranks, &out, &flags));
            same_run(&out, &one);
        }
        // As many slices as ranks.
        let two = dir.path().join("two");
        good(case.on(2, &two, &["--steps", "7", "--save-steps", "3"]));
        let slices = dir.path().join("slices");
        good(case.alone(&slices, &["--steps", "7", "--save-steps", "3", "--slices", "2"]));
        same_run(&two, &slices);
        // As MPI adds: near.
        let fast = dir.path().join("fast");
        good(case.on(2, &fast, &[&flags[..], &["--reduce", "fast"]].concat()));
        let losses =
            |dir: &Path| -> Vec<f64> { log(dir).iter().filter_map(|line| line["loss"].as_f64()).collect() };
        let (a, b) = (losses(&fast), losses(&one));
        assert_eq!(a.len(), b.len());
        a.iter().zip(&b).for_each(|(a, b)| assert!((a - b).abs() < 1e-3 * b.abs(), "{stage}: {a} {b}"));
    }
}

/// Ten kills of a random rank, some steps and milliseconds after its start; what goes on has another number of ranks each time.
#[test]
fn whoever_dies_the_run_goes_on_with_any_number() {
    if !built() {
        return;
    }
    for stage in STAGES {
        let (case, dir) = (Case::new(stage), folder());
        let flags = ["--steps", "12", "--save-steps", "1", "--keep", "2", "--slices", "4", "--resume"];
        let (straight, out) = (dir.path().join("straight"), dir.path().join("run"));
        good(case.on(2, &straight, &flags));
        let done = || fs::read_to_string(out.join("log.jsonl")).map_or(0, |text| text.lines().count());
        let (mut died, wanted) = (0, amount("LLM2VEC_KILLS", 10).div_ceil(3));
        for kills in 0..wanted {
            let draw = philox([kills as u32, 0, 0, 0], [11, stage.len() as u32]);
            let (goal, deadline) = (done() + draw[0] as usize % 4, Instant::now() + PATIENCE);
            let mut child = spawned(case.on([4, 2, 1][kills % 3], &out, &flags));
            let mut ranks = Vec::new();
            while (ranks.is_empty() || done() < goal) && child.try_wait().unwrap().is_none() {
                assert!(Instant::now() < deadline, "no step");
                sleep(Duration::from_millis(2));
                ranks = processes(child.id());
            }
            sleep(Duration::from_millis(draw[2] as u64 % 50));
            if let Some(rank) = ranks.get(draw[1] as usize % ranks.len().max(1)) {
                let _ = Command::new("kill").args(["-9", &rank.to_string()]).status();
            }
            died += usize::from(!ended(child).status.success());
        }
        assert!(died > 0, "{stage}: no kill of {wanted} came while the run was on");
        good(case.on(2, &out, &flags));
        same_run(&out, &straight);
    }
}

/// The ranks that a launcher has started, itself or by a process between.
fn processes(parent: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
    let is_rank =
        |id| fs::read_to_string(format!("/proc/{id}/comm")).is_ok_and(|name| name.trim() == "llm2vec");
    let children = list.split_whitespace().filter_map(|id| id.parse().ok());
    children.flat_map(|id| if is_rank(id) { vec![id] } else { processes(id) }).collect()
}

#[test]
fn a_signal_to_one_rank_ends_all_after_the_step() {
    if !built() {
        return;
    }
    let (case, dir) = (Case::new("simcse"), folder());
    let flags = ["--steps", "60", "--save-steps", "1000", "--keep", "1", "--slices", "2"];
    let (straight, out) = (dir.path().join("straight"), dir.path().join("run"));
    good(case.alone(&straight, &flags));
    let child = spawned(case.on(2, &out, &flags));
    let deadline = Instant::now() + PATIENCE;
    while fs::read_to_string(out.join("log.jsonl")).map_or(0, |text| text.lines().count()) < 3 {
        assert!(Instant::now() < deadline, "no step");
        sleep(Duration::from_millis(2));
    }
    let ranks = processes(child.id());
    assert_eq!(ranks.len(), 2);
    assert!(Command::new("kill").args(["-TERM", &ranks[1].to_string()]).status().unwrap().success());
    let output = ended(child);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("stopped by SIGTERM") && said.contains("is saved; --resume goes on"), "{said}");
    assert_eq!(said.matches("stopped by").count(), 1, "{said}");
    good(case.on(2, &out, &[&flags[..], &["--resume"]].concat()));
    same_run(&out, &straight);
}

/// The command through a shell that gives one rank something else.
fn other_on_rank_1(command: &Command, from: &str, to: &str) -> Command {
    let quoted = |text: &std::ffi::OsStr| format!("'{}'", text.to_str().unwrap());
    let line = std::iter::once(command.get_program()).chain(command.get_args()).map(quoted);
    let line = line.collect::<Vec<_>>().join(" ");
    let other = line.replace(from, to);
    assert_ne!(line, other);
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("if [ \"{RANK}\" = 1 ]; then exec {other}; else exec {line}; fi")]);
    mpirun(2, &shell)
}

#[test]
fn an_error_on_one_rank_ends_all_and_is_said_once() {
    if !built() {
        return;
    }
    let (case, dir) = (Case::new("simcse"), folder());
    let out = dir.path().join("run");
    let command = case.alone(&out, &["--steps", "3"]);
    let data = case.data.of("simcse");
    let copy = dir.path().join("other.txt");
    fs::write(&copy, fs::read_to_string(&data).unwrap() + "one more row\n").unwrap();
    let model = case.tiny.dir.path();
    for (from, to, says) in [
        (str(&data), "/nowhere.txt", "rank 1: /nowhere.txt"),
        (str(&data), str(&copy), "rank 0: rank 1 of 2 and rank 0 differ in their training data"),
        ("'1e-2'", "'1e-3'", "rank 0: rank 1 of 2 and rank 0 differ in their settings"),
        (str(model), "/no/model", "rank 1: /no/model"),
    ] {
        let output = ended(spawned(other_on_rank_1(&command, from, to)));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(says), "{from} {to}: {said}");
        assert_eq!(said.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{said}");
    }
    // The folder that the first rank may not have.
    fs::create_dir_all(&out).unwrap();
    good(case.on(2, &out, &["--steps", "3"]));
    let output = ended(spawned(case.on(2, &out, &["--steps", "3"])));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && said.contains("rank 0: ") && said.contains("already holds a run"),
        "{said}"
    );
    // A loss that leaves the finite numbers, on all of them.
    let flags = ["--batch", "6", "--max-length", "24", "--steps", "30", "--lr", "1e30"];
    let diverging = train("simcse", model, &case.data, &dir.path().join("nan"), &flags);
    let output = ended(spawned(mpirun(2, &diverging)));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("is not finite"), "{said}");
    assert_eq!(said.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{said}");
}

#[test]
fn ranks_and_slices_that_do_not_fit_are_refused() {
    if !built() {
        return;
    }
    let (case, dir) = (Case::new("mntp"), folder());
    let out = dir.path().join("run");
    let said = |ranks, flags: &[&str]| {
        let output = ended(spawned(case.on(ranks, &out, flags)));
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(said(2, &["--slices", "1"]).contains("--slices: 2 ranks cannot share 1 slices"));
    assert!(said(3, &[]).contains("3 ranks cannot share 3 slices"));
    // What torchrun starts.
    let mut command = case.alone(&out, &[]);
    command.envs([("RANK", "0"), ("WORLD_SIZE", "2")]);
    failed(command.output().unwrap(), 2, &["mpirun -n 2 llm2vec train"]);
    // What the other MPI's mpirun starts.
    let names = if is_open_mpi() {
        ["PMI_RANK", "PMI_SIZE"]
    } else {
        ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"]
    };
    let mut command = case.alone(&out, &[]);
    command.envs(names.into_iter().zip(["0", "2"]));
    failed(command.output().unwrap(), 1, &["one of 2 ranks, and its MPI library sees 1: take"]);
    let doctor = llm2vec(&["doctor"]).output().unwrap().stdout;
    let found =
        String::from_utf8_lossy(&doctor).lines().find(|l| l.contains("ranks train by")).map(String::from);
    let wanted = if is_open_mpi() { "Open MPI v" } else { "MPICH Version: " };
    assert!(found.as_ref().is_some_and(|line| line.contains(wanted) && !line.contains('\\')), "{found:?}");
    // A reference's batch is each rank's.
    let config = dir.path().join("theirs.json");
    fs::write(&config, r#"{"per_device_train_batch_size": 3, "stop_after_n_steps": 2}"#).unwrap();
    let mut command = Command::new(case.alone(&out, &[]).get_program());
    let (model, data) = (case.tiny.dir.path(), case.data.of("mntp"));
    command.args(["train", "mntp", "--config", str(&config), "-m", str(model), "--data", str(&data)]);
    command.args(["-o", str(&out), "--max-length", "24", "--device", "cpu"]);
    let output = ended(spawned(mpirun(2, &command)));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("3 rows a batch there, on 2 ranks 6 in all"), "{said}");
    let saved = fs::read_to_string(out.join("train_config.json")).unwrap();
    let saved: serde_json::Value = serde_json::from_str(&saved).unwrap();
    assert_eq!((&saved["per_device_train_batch_size"], &saved["slices"]), (&6.into(), &2.into()));
}

/// The ranks of a machine with so many false GPUs, and a false NCCL where there is one: their kernels compute nothing.
fn with_gpus(gpus: &str, libraries: &Path, command: &Command, settings: &[(&str, &str)]) -> Output {
    let mut shell = Command::new("sh");
    let quoted = |text: &std::ffi::OsStr| format!("'{}'", text.to_str().unwrap());
    let line = std::iter::once(command.get_program()).chain(command.get_args()).map(quoted);
    let line = line.collect::<Vec<_>>().join(" ");
    let own = format!("FAKE_LOG=$TMPDIR/log-{RANK} LD_LIBRARY_PATH=$FAKE_LIBRARIES:$LD_LIBRARY_PATH");
    shell.args(["-c", &format!("{own} exec {line}")]);
    let mut run = mpirun(2, &shell);
    run.envs([("FAKE_LIBRARIES", libraries), ("TMPDIR", libraries)]).envs(settings.iter().copied());
    run.envs([("FAKE_COUNT", gpus), ("FAKE_APPEND", "1")]);
    ended(spawned(run))
}

/// Gradients go by NCCL where each rank has it and a GPU of its own, and by MPI where not, with a line that says so; a failure of
/// one rank ends the other, which waits for it.
#[test]
fn gpus_exchange_gradients_where_they_can() {
    if !built() || std::env::var_os("LLM2VEC_NO_KERNELS").is_some() {
        return;
    }
    let (tiny, data, dir, libraries) = (Tiny::wide(64), Data::new(8), folder(), folder());
    let at = libraries.path();
    if !compiled(at, "libcuda.so", "libcuda.c", &[]) {
        return;
    }
    let flags = ["--batch", "4", "--max-length", "12", "--steps", "2", "--rank", "4"];
    let run = |name: &str, more: &[&str]| {
        let (out, rows) = (dir.path().join(name), data.of("simcse"));
        let common = ["train", "simcse", "-m", tiny.path(), "--data", str(&rows), "-o", str(&out)];
        llm2vec(&[&common[..], &flags, &["--kernels", "portable"], more].concat())
    };
    let says = |output: Output, what: &str| {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let lines: Vec<&str> = said.lines().filter(|line| line.contains("gradients: by")).collect();
        assert!(output.status.success() && lines.len() == 1 && lines[0].contains(what), "{what}: {said}");
    };
    let by_mpi = "gradients: by MPI through the hosts' memory (";
    // Where a system has the library, it is found all the same.
    if nccl::version().is_err() {
        let none = format!("{by_mpi}rank 0: libnccl.so.2 was not found)");
        says(with_gpus("2", at, &run("none", &[]), &[]), &none);
    }
    assert!(compiled(at, "libnccl.so.2", "libnccl.c", &[]));
    fs::read_dir(at)
        .unwrap()
        .flatten()
        .filter(|f| f.file_name().to_string_lossy().starts_with("log"))
        .for_each(|f| {
            fs::remove_file(f.path()).unwrap();
        });
    let shared = format!("{by_mpi}ranks 0 and 1 share a GPU, which NCCL refuses)");
    says(with_gpus("1", at, &run("shared", &[]), &[]), &shared);
    let told = format!("{by_mpi}rank 0: by its settings)");
    says(with_gpus("2", at, &run("mpi", &["--transport", "mpi"]), &[]), &told);
    assert!(!fs::read_to_string(at.join("log-1")).unwrap().contains("ncclComm"));

    says(with_gpus("2", at, &run("nccl", &[]), &[]), "gradients: by NCCL 2.30.3");
    same_run(&dir.path().join("nccl"), &dir.path().join("mpi"));
    let log = fs::read_to_string(at.join("log-1")).unwrap();
    let calls: Vec<&str> = log.lines().filter_map(|l| l.strip_prefix("nccl")?.split(' ').next()).collect();
    let step = ["GroupStart", "Send", "Recv", "Send", "Recv", "GroupEnd", "AllGather"];
    assert_eq!(calls, [&["CommInitRank"][..], &step, &step, &["CommDestroy"]].concat());

    let refused = |name: &str, gpus: &str, more: &[&str], settings: &[(&str, &str)], what: &str| {
        let output = with_gpus(gpus, at, &run(name, more), settings);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let errors: Vec<&str> = said.lines().filter(|line| line.starts_with("error: ")).collect();
        assert!(!output.status.success() && errors.len() == 1 && errors[0].contains(what), "{what}: {said}");
    };
    let wished = ["--transport", "nccl"];
    refused("wished", "1", &wished, &[], "--transport nccl: ranks 0 and 1 share a GPU");
    refused("cpu", "2", &[&wished[..], &["--device", "cpu"]].concat(), &[], "rank 0: the CPU trains");
    for call in ["ncclCommInitRank", "ncclAllGather"] {
        let fails = [("FAKE_FAIL", call), ("FAKE_FAIL_RANK", "1")];
        refused(call, "2", &[], &fails, &format!("rank 1: {call} failed: unhandled system error"));
    }
}

/// Two steps of the kernels themselves, with vectors and gradients through the host.
#[test]
fn ranks_with_a_gpu_train_what_one_trains() {
    if !built() || std::env::var_os("LLM2VEC_NO_KERNELS").is_some() {
        return;
    }
    let (tiny, data, dir) = (Tiny::wide(64), Data::new(8), folder());
    let flags = [
        "--batch",
        "4",
        "--max-length",
        "12",
        "--steps",
        "2",
        "--rank",
        "4",
        "--slices",
        "2",
        "--device",
        "emulated",
    ];
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    let run = |out: &Path| train("simcse", tiny.dir.path(), &data, out, &flags);
    good(run(&one));
    good(mpirun(2, &run(&two)));
    same_run(&one, &two);
}
