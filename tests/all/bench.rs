//! `llm2vec bench` and `doctor`, and the runner that is packed for a GPU machine: what they print, compare and miss.

use crate::command;
use crate::common;

use clap::CommandFactory;
use command::*;
use common::here;
use llm2vec::bench::cases::{self, large::large};
use llm2vec::bench::record::{Check, Counted, Record, Rival, Roof, Row, Spread};
use llm2vec::bench::table::Form;
use llm2vec::device::cuda;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

#[test]
fn large_cases_are_a_layer_at_any_number_of_tokens() {
    let ops = |list: &[cases::Case]| list.iter().map(|c| c.op).collect::<BTreeSet<_>>();
    for tokens in [1, 5, 64, 16384] {
        let list = large(tokens);
        let mut names: Vec<_> = list.iter().map(|c| (c.op, &c.label)).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), list.len(), "a case is there twice");
        let tested: Vec<_> = cases::all().into_iter().chain(cases::device_only()).collect();
        let unknown: Vec<_> = ops(&list).difference(&ops(&tested)).copied().collect();
        assert!(unknown.is_empty(), "no test has {unknown:?}");
        for noun in [
            "rmsnorm",
            "rope",
            "attention",
            "lora_linear",
            "swiglu",
            "pool",
            "l2norm",
            "masked_xent",
            "contrastive",
        ] {
            let back = if noun == "masked_xent" { "step" } else { "bwd" };
            for op in [format!("{noun}_fwd"), format!("{noun}_{back}")] {
                assert!(ops(&list).contains(op.as_str()), "{op}");
            }
        }
    }
}

/// The cost model: what is written once, read once, or both, at each operand's own size.
#[test]
fn bytes_are_counted_by_operand() {
    let cpu = llm2vec::device::Device::cpu();
    let all = cases::all();
    let of = |op: &str, label: &str| all.iter().find(|c| c.op == op && c.label.starts_with(label)).unwrap();
    assert_eq!(of("swiglu_fwd", "N=256 F=768").bytes(&cpu), 4 * 3 * 256 * 768);
    assert_eq!(of("adamw_step", "[300, 160]").bytes(&cpu), 4 * 7 * 300 * 160);
    assert_eq!(of("embed_fwd", "N=256 C=768").bytes(&cpu), 4 * 2 * 256 * 768);
}

#[test]
fn the_list_is_json_with_every_size() {
    let list: Value = serde_json::from_str(&good(llm2vec(&[
        "bench",
        "ops",
        "--list",
        "json",
        "--filter",
        "attention_bwd drop",
    ])))
    .unwrap();
    let cases = list.as_array().unwrap();
    assert!(cases.len() > 10);
    let starts = &cases[0]["inputs"]["starts"];
    assert_eq!((starts["dtype"].as_str(), &starts["ints"]), (Some("i32"), &serde_json::json!([0, 1])));
    assert_eq!(cases[0]["inputs"]["lse"]["dtype"], "f32");
    assert_eq!(cases[0]["outputs"]["dqkv"]["dtype"], "bf16");
}

/// What is listed is what would run there: the sizes of large tiles are for devices.
#[test]
fn the_list_is_of_the_device() {
    let args = ["bench", "ops", "--list", "json", "--filter", "lora_linear_fwd M=6024", "--device"];
    let list = |device: &str| llm2vec(&[&args[..], &[device]].concat());
    failed(list("cpu").output().unwrap(), 2, &["no case has all these words"]);
    if option_env!("LLM2VEC_NVCC").is_none() {
        println!("skipped: this build holds no kernels (nvcc was not found)");
        return;
    }
    let cases: Value = serde_json::from_str(&good(list("emulated"))).unwrap();
    assert_eq!(cases.as_array().map(Vec::len), Some(2), "{cases}");
}

#[test]
fn a_run_is_a_table_in_every_form_and_a_report() {
    let dir = folder();
    let path = |name: &str| dir.path().join(name);
    let (json, md, csv) = (path("a.json"), path("a.md"), path("a.csv"));
    let mut args = vec!["bench", "ops", "-q", "--filter", "swiglu N=65", "--rounds", "2", "--samples", "1"];
    args.extend(["--device", "cpu", "-o", str(&json), "-o", str(&md), "-o", str(&csv)]);
    let text = good(llm2vec(&args));
    assert!(text.contains("swiglu_bwd  N=65 F=40") && text.contains("roof: copy "), "{text}");
    assert!(text.contains(" TFLOP/s (f32 multiply-add)"), "{text}");
    let record: Record = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
    assert_eq!((record.kind.as_str(), record.rows.len()), ("ops", 2));
    let time = record.rows[0].time.unwrap();
    assert!(
        time.samples == 2 && time.least > 0.0 && time.least <= time.median && record.rows[0].share.is_some()
    );
    assert!(record.rows[0].clock_mhz.is_none(), "a CPU has no such clock");
    assert!(text.lines().next().is_some_and(|head| head.ends_with("SM MHz")), "{text}");
    assert!(
        record.command.contains("LLM2VEC_DEVICE=cpu ")
            && record.command.contains("--filter 'swiglu N=65' --rounds 2")
            && record.date.ends_with("UTC")
            && record.machine.contains("threads")
    );
    assert_eq!(fs::read_to_string(&csv).unwrap().lines().count(), 3);
    let report = good(llm2vec(&["bench", "report", str(dir.path())]));
    assert_eq!(report, format!("### a\n\n{}\n", fs::read_to_string(&md).unwrap()));
}

#[test]
fn counts_stand_where_times_would() {
    let counted = Counted { bytes: 1000, touched: 505, flops: 64, ..Counted::default() };
    let row = Row { op: "a_fwd".into(), counted: Some(counted), ..Row::default() };
    let csv = Record { kind: "ops".into(), rows: vec![row], ..Record::default() }.render(Form::Csv);
    assert!(csv.contains("bytes,touched,sectors,tensor FLOPs,conflicts,kernels"), "{csv}");
    assert!(csv.contains("a_fwd,,1000,505,0,64,0,"), "{csv}");
}

#[test]
fn after_its_seconds_a_run_publishes_what_it_has() {
    let args = ["bench", "ops", "--device", "cpu", "--filter", "rope N=65", "--samples", "1"];
    let dir = folder();
    let json = dir.path().join("a.json");
    for seconds in ["0", "1"] {
        let more = ["--rounds", "100000", "--seconds", seconds, "-o", str(&json)];
        let output = llm2vec(&[&args[..], &more].concat()).output().unwrap();
        assert!(output.stderr.is_empty(), "progress is for terminals");
        passed(output);
        let record: Record = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
        let samples = |r: &Row| r.time.map_or(0, |t| t.samples);
        assert!(record.rows.iter().all(|r| (1..100_000).contains(&samples(r))), "{record:?}");
        assert!(seconds == "1" || record.rows.iter().all(|r| samples(r) == 1), "{record:?}");
    }
}

#[test]
fn a_record_says_what_was_not_run() {
    let spread = |us: f64| Spread { median: us * 1e-6, least: us * 1e-6, samples: 1 };
    let rivals = [
        ("bound: half".to_string(), Rival::Time(spread(1.0))),
        ("eager".to_string(), Rival::Time(spread(30.0))),
        ("fast".to_string(), Rival::Note("not here".into())),
    ];
    let timed = Row {
        op: "a_fwd".into(),
        label: "N=1 | odd".into(),
        bytes: 1_000_000,
        time: Some(spread(20.0)),
        clock_mhz: Some(1755.4),
        rivals: BTreeMap::from(rivals),
        ..Row::default()
    };
    let note = Some("a_fwd: C = 3, a GPU takes multiples of 8".to_string());
    let rivals = BTreeMap::from([("eager".to_string(), Rival::Note("no such op here".into()))]);
    let refused = Row { op: "a_fwd".into(), label: "C=3".into(), note, rivals, ..Row::default() };
    let record = Record {
        rival: Some("another".into()),
        roof: Some(Roof {
            bytes_per_second: Some(1e11),
            flops_per_second: Some(2e12),
            product: Some("our own kernel".into()),
        }),
        rows: vec![timed, refused.clone(), Row { label: "C=5".into(), ..refused }],
        ..Record::default()
    };
    let text = record.render(Form::Markdown);
    assert!(
        text.contains("| a_fwd | N=1 \\| odd | 20.0 | 20.0 | 50.0 | - | - | 1755 | 30.0 | eager | 1.50 |"),
        "{text}"
    );
    assert!(
        text.contains(
            "| a_fwd | C=3 | - | - | - | - | - | a_fwd: C = 3, a GPU takes multiples of 8 | - | none ran | - |"
        ),
        "{text}"
    );
    assert!(text.contains("* roof: copy 100 GB/s, plain product 2.00 TFLOP/s (our own kernel)"), "{text}");
    assert!(text.contains("* no rival: a_fwd C=3 and 1 more (eager: no such op here)\n"), "{text}");
    let again: Record = serde_json::from_str(&record.render(Form::Json)).unwrap();
    assert_eq!(again.render(Form::Markdown), text);
    let check = Check { name: "b".into(), status: "failed".into(), seconds: 1.0, detail: "why".into() };
    let checks = Record { kind: "checks".into(), checks: vec![check], ..Record::default() };
    assert!(checks.render(Form::Markdown).contains("| b | failed | 1.0 | why |"));
}

/// A rival that answers as `benches/pytorch/ops.py` does; the protocol without PyTorch.
#[cfg(unix)]
#[test]
fn a_rival_takes_turns_and_its_failures_are_one_line() {
    use std::os::unix::fs::PermissionsExt;
    let dir = folder();
    let rival = |name: &str, script: &str| {
        let path = dir.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    };
    let answers = r#"read settings
echo '{"name": "Rival 1"}'
while read order; do echo "$order" >> "$0.log"; echo '{"slow": [0.5], "none": "not here"}'; done"#;
    let (whole, json) = (rival("whole", answers), dir.path().join("a.json"));
    let text = good(against(&whole, "rope N=65", &["--rounds", "2", "-o", str(&json)]));
    assert!(text.contains("rival: Rival 1") && text.contains("500000  slow"), "{text}");
    let orders = fs::read_to_string(dir.path().join("whole.log")).unwrap();
    let orders: Vec<Value> = orders.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let order: Vec<_> = orders.iter().map(|o| o["run"].as_u64().unwrap()).collect();
    assert_eq!(order, [0, 1, 0, 1], "rounds go across all cases");
    let rows = |json: &Path| serde_json::from_str::<Record>(&fs::read_to_string(json).unwrap()).unwrap().rows;
    assert_eq!(rows(&json)[0].best_rival().map(|(name, s)| (name, s.samples)), Some(("slow", 2)));
    let lacks = r#"read s; echo '{"error": "No module named torch"}'"#;
    for (name, script, words) in [
        ("mute", "exit 3", "went away"),
        ("lacks", lacks, "No module named torch; install torch"),
        ("deaf", "exec sleep 60", "has not answered for 1 s (--patience)"),
    ] {
        let run = against(&rival(name, script), "rope N=65", &["--patience", "1"]).output().unwrap();
        failed(run, 1, &["--against pytorch", words]);
    }
    // One that is lost on the way costs its own numbers and none of ours.
    for (name, script, words) in [
        ("babbles", "read o; echo hello", "the child said hello"),
        ("leaves", r#"read o; echo '{"slow": [0.5]}'"#, "went away"),
        ("hangs", "exec sleep 60", "has not answered for 1 s"),
    ] {
        let script = format!("read s; echo '{{\"name\": \"b\"}}'; {script}");
        let json = dir.path().join("lost.json");
        let more = ["--patience", "1", "-o", str(&json)];
        let run = against(&rival(name, &script), "rope N=65", &more).output().unwrap();
        let (said, rows) = (String::from_utf8_lossy(&run.stderr), rows(&json));
        assert!(run.status.code() == Some(1) && said.contains(words), "{said}");
        assert!(rows.iter().all(|r| r.time.is_some_and(|t| t.samples == 1)), "{rows:?}");
        assert!(matches!(&rows[1].rivals["PyTorch"], Rival::Note(why) if why.contains(words)), "{rows:?}");
        assert_eq!(rows[0].best_rival().is_some(), name == "leaves");
    }
    failed(
        against(&dir.path().join("nobody"), "rope N=65", &[]).output().unwrap(),
        1,
        &["cannot be started", "--python NAME"],
    );
}

/// These cases against this Python, on the CPU; a round unless told.
fn against(python: &Path, filter: &str, more: &[&str]) -> Command {
    let args = ["bench", "ops", "-q", "--device", "cpu", "--samples", "1", "--filter", filter];
    let mut command =
        llm2vec(&[&args[..], &["--against", "pytorch", "--python", str(python)], more].concat());
    command.env("LLM2VEC_ROUNDS", "1");
    command
}

/// `benches/pytorch/ops.py` over a torch in which every call fails: a reason a case, and our own numbers.
#[test]
fn whatever_pytorch_throws_is_its_answer() {
    if !Command::new("python3").arg("--version").output().is_ok_and(|o| o.status.success()) {
        println!("skipped: no python3");
        return;
    }
    const TORCH: &str = "
from types import SimpleNamespace as Some
__version__ = '0'
float32 = bfloat16 = None
device = lambda name: Some(type='cpu')
set_num_threads = manual_seed = lambda n: None
_dynamo = Some(config=Some())
def __getattr__(name):
    def fails(*args, **how):
        raise OverflowError(f'{name} fails')
    if name.startswith('__'):
        raise AttributeError(name)
    return fails
";
    let dir = folder();
    let json = dir.path().join("a.json");
    fs::create_dir_all(dir.path().join("torch/nn")).unwrap();
    fs::write(dir.path().join("torch/__init__.py"), TORCH).unwrap();
    fs::write(dir.path().join("torch/nn/__init__.py"), "").unwrap();
    fs::write(dir.path().join("torch/nn/functional.py"), "").unwrap();
    for (filter, why) in [("narrow N=1 ", "no such op here"), ("swiglu N=65", "randn fails")] {
        let mut command = against(Path::new("python3"), filter, &["-o", str(&json)]);
        command.env("PYTHONPATH", dir.path());
        good(command);
        let record: Record = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
        for row in &record.rows {
            assert!(row.time.is_some(), "{row:?}");
            assert!(
                matches!(row.rivals.values().next(), Some(Rival::Note(found)) if found == why),
                "{row:?}"
            );
        }
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let refused = |args: &[&str], words: &[&str]| failed(llm2vec(args).output().unwrap(), 2, words);
    refused(&["bench", "ops", "--filter", "nonesuch"], &["no case has all these words"]);
    refused(&["bench", "ops", "--samples", "0"], &["1 sample"]);
    refused(&["bench", "ops", "--tokens", "0", "--cases", "large"], &["--tokens 0"]);
    refused(&["bench", "ops", "--output", "a.png"], &[".md, .json, .csv or .txt"]);
    refused(&["bench", "ops", "--compile"], &["only with --against"]);
    refused(&["bench", "encode", "--shape", "GPT-5"], &["expected one of S-LLaMA-1.3B"]);
    refused(&["bench", "encode", "--shape", "Mistral-7B", "--layers", "99"], &["the model has 32"]);
    refused(&["bench", "encode", "--device", "emulated", "--shape", "Mistral-7B"], &["times nothing"]);
    let novel5m = common::novel5m();
    let short = ["bench", "train", "-m", str(&novel5m), "--tokens", "9", "--length", "5", "--device", "cpu"];
    refused(&short, &["at least two texts"]);
    let dir = folder();
    failed(llm2vec(&["bench", "report", str(dir.path())]).output().unwrap(), 1, &["no .json file"]);
    fs::write(dir.path().join("a.json"), "[1]").unwrap();
    failed(llm2vec(&["bench", "report", str(dir.path())]).output().unwrap(), 1, &["no result of"]);
}

/// Every long flag of every command has a variable, as the README says.
#[test]
fn every_flag_is_an_environment_variable() {
    fn lacking(command: &clap::Command, list: &mut Vec<String>) {
        let flags = command.get_arguments().filter(|a| a.get_long().is_some() && a.get_env().is_none());
        list.extend(flags.map(|a| format!("{} --{}", command.get_name(), a.get_long().unwrap())));
        command.get_subcommands().for_each(|c| lacking(c, list));
    }
    let mut list = Vec::new();
    lacking(&llm2vec::cli::Cli::command(), &mut list);
    assert!(list.is_empty(), "{list:?}");
}

#[test]
fn a_flag_beats_the_environment() {
    let run = |args: &[&str], set: &[(&str, &str)]| {
        let mut command = llm2vec(args);
        command.envs(set.iter().copied());
        command.output().unwrap()
    };
    let (shape, model) = (["bench", "encode", "--shape", "GPT-5"], ["bench", "encode", "-m", "nowhere/here"]);
    let set = [("LLM2VEC_MODEL", "nowhere/here"), ("LLM2VEC_SHAPE", "GPT-5")];
    failed(run(&shape, &set[..1]), 2, &["--shape GPT-5"]);
    failed(run(&["bench", "encode"], &set[1..]), 2, &["--shape GPT-5"]);
    failed(run(&["bench", "encode"], &set), 2, &["expected one of --shape and --model"]);
    failed(run(&[&shape[..], &model[2..]].concat(), &[]), 2, &["expected one of --shape and --model"]);
    failed(run(&["bench", "encode"], &[]), 2, &["expected --shape NAME or --model DIR"]);
    let there = run(&model, &set[1..]);
    assert!(there.status.code() != Some(0), "{there:?}");
    assert!(String::from_utf8_lossy(&there.stderr).contains("nowhere/here"), "{there:?}");

    let built = option_env!("LLM2VEC_NVCC").is_some();
    let table = |out: std::process::Output| match built {
        true => assert!(passed(out).contains("registers")),
        false => failed(out, 1, &["holds no CUDA kernels"]),
    };
    table(run(&["info", "--kernels"], &[("LLM2VEC_DEVICE", "cpu"), ("LLM2VEC_MODEL", "nowhere/here")]));
    table(run(&["info"], &[("LLM2VEC_KERNELS", "1")]));
    let novel5m = common::novel5m();
    let info = ["info", "-m", str(&novel5m)];
    assert!(passed(run(&info, &[("LLM2VEC_KERNELS", "1")])).contains("feed-forward"));
    failed(run(&[&info[..], &["--kernels"]].concat(), &[]), 2, &["--kernels and --model"]);
    failed(run(&["info"], &[]), 2, &["expected --model DIR or --kernels"]);
    assert!(passed(run(&["doctor"], &[("LLM2VEC_JSON", "1")])).starts_with('{'));
}

/// What only a step of training has is no flag of encoding.
#[test]
fn each_bench_has_its_own_flags() {
    let [encode, train] = ["encode", "train"].map(|task| good(llm2vec(&["bench", task, "--help"])));
    assert!(encode.contains("encoding whole packs") && train.contains("steps of a stage"), "{encode}{train}");
    for flag in ["--recompute", "--no-graph", "--stage"] {
        assert!(train.contains(flag) && !encode.contains(flag), "{flag}");
        let args = ["bench", "encode", "--shape", "Mistral-7B", flag];
        failed(llm2vec(&args).output().unwrap(), 2, &[flag]);
    }
}

#[test]
fn a_whole_model_is_timed_both_ways() {
    let novel5m = common::novel5m();
    for (task, flags) in
        [("encode", &["--bf16"][..]), ("train", &["--recompute", "--no-graph"]), ("train", &[])]
    {
        let args = ["bench", task, "-m", str(&novel5m), "--tokens", "70", "--length", "16", "--layers", "2"];
        let more = ["-q", "--rounds", "1", "--samples", "1", "--device", "cpu"];
        let text = good(llm2vec(&[&args[..], &more, flags].concat()));
        assert_eq!(text.contains(", recomputed, kernel by kernel"), flags.contains(&"--no-graph"), "{text}");
        assert!(text.contains("4 texts of 16 tokens") && text.contains("tokens/s"), "{text}");
    }
}

#[test]
fn doctor_gives_a_hint_for_all_that_is_missing() {
    let lines = good(llm2vec(&["doctor", "--json"]));
    let findings: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert!(findings.iter().any(|f| f["name"] == "gpu"));
    for f in &findings {
        assert_eq!(f["status"] == "WARN", f["hint"].is_string(), "{f}");
    }
    assert_eq!(good(llm2vec(&["doctor"])).lines().count(), findings.len());
}

/// The runner's stages over a program that stands for ours: which GPU tests see, and what is left of a long last line.
#[cfg(target_os = "linux")]
#[test]
fn the_packed_runner_notes_how_its_programs_ended() {
    use std::os::unix::fs::PermissionsExt;
    let dir = folder();
    let program = |name: &str, script: &str| {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    program(
        "bin/llm2vec",
        r#"echo '{"name":"gpu","status":"PASS","what":"A GPU","hint":null}
{"name":"driver","status":"PASS","what":"NVRM 1","hint":null}'"#,
    );
    let long = "é".repeat(150);
    let script = format!("case $1 in cases::) echo $CUDA_VISIBLE_DEVICES ;; *) echo x{long}; exit 3 ;; esac");
    program("tests/device", &script);
    let runner = dir.path().join("run.sh");
    fs::copy(here("benches/gpu/run.sh"), &runner).unwrap();
    for (device, visible, seen) in [("cuda:1", None, "1"), ("cuda:1", Some("4,6"), "6"), ("cuda", None, "")] {
        let mut command = Command::new("bash");
        command.arg(&runner).arg("tests").env("DEVICE", device).env_remove("CUDA_VISIBLE_DEVICES");
        command.envs(visible.map(|list| ("CUDA_VISIBLE_DEVICES", list)));
        assert_eq!(command.output().unwrap().status.code(), Some(1));
        // As UTF-8, or it could not be read.
        let text = fs::read_to_string(dir.path().join("results/tests.json")).unwrap();
        let record: Record = serde_json::from_str(&text).unwrap();
        assert_eq!(record.driver.as_deref(), Some("NVRM 1"));
        assert_eq!((record.checks[0].detail.as_str(), record.checks[1].status.as_str()), (seen, "failed"));
        assert!(record.checks[1].detail.starts_with("exit status 3: xéé"), "{text}");
    }
}

/// The runner of the pack, without its test programs: on a machine without a GPU each stage says so.
#[cfg(target_os = "linux")]
#[test]
fn the_packed_runner_says_what_is_missing() {
    if cuda::gpus().is_ok_and(|list| !list.is_empty()) {
        println!("skipped: this machine has a GPU");
        return;
    }
    let dir = folder();
    fs::create_dir(dir.path().join("bin")).unwrap();
    fs::copy(binary(), dir.path().join("bin/llm2vec")).unwrap();
    fs::write(dir.path().join("COMMIT"), "abc1234\n").unwrap();
    let runner = dir.path().join("run.sh");
    fs::copy(here("benches/gpu/run.sh"), &runner).unwrap();
    let families = format!("for family in {}; do", llm2vec::bench::check::FAMILIES.join(" "));
    assert!(fs::read_to_string(&runner).unwrap().contains(&families), "{families}");
    let run = |stage: &str| {
        let mut command = Command::new("bash");
        command
            .arg(&runner)
            .arg(stage)
            .env("PYTHON", "no-such-python")
            .env_remove("DEVICE")
            .env_remove("FILTER");
        command.output().unwrap()
    };
    let all = run("all");
    let said = String::from_utf8(all.stdout).unwrap();
    assert_eq!(all.status.code(), Some(3), "{said}{}", String::from_utf8_lossy(&all.stderr));
    for stage in "selfcheck ops models pytorch-ops pytorch-encode pytorch-train tests sanitize".split(' ') {
        assert!(said.contains(&format!("skipped: {stage} (0 s): no GPU: ")), "{said}");
        let text = fs::read_to_string(dir.path().join(format!("results/{stage}.json"))).unwrap();
        let record: Record = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (record.commit.as_deref(), record.checks[0].status.as_str()),
            (Some("abc1234"), "skipped")
        );
    }
    assert!(said.contains("no torch for no-such-python: "), "{said}");
    let report = fs::read_to_string(dir.path().join("results/report.md")).unwrap();
    assert!(report.contains("| pytorch-train | skipped | 0.0 | no GPU: "), "{report}");
    // A record that is none makes no report.
    fs::write(dir.path().join("results/z.json"), "[").unwrap();
    assert_eq!(run("all").status.code(), Some(1));
    let nonsense = run("everything");
    assert_eq!(nonsense.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&nonsense.stderr).contains("run.sh selfcheck|ops|models|"));
    fs::remove_file(dir.path().join("bin/llm2vec")).unwrap();
    assert_eq!(run("tests").status.code(), Some(1));
}
