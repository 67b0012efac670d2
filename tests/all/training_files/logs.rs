//! The JSONL log, TensorBoard's files and the plot.

use super::{child, child_folder, refused};
use llm2vec::train::log::{Log, Options, Point, Step};
use llm2vec::train::plot;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::Duration;

fn step(step: u64) -> Step {
    let (loss, time) = (1.0 / (step as f64 + 0.1), Duration::from_millis(250));
    Step { step, loss, grad_norm: 0.3 * step as f64, lr: 1e-4 / step as f64, tokens: 1000, time, spent: None }
}

fn options(dir: &Path) -> Options {
    let (jsonl, tensorboard) = (Some(dir.join("log.jsonl")), Some(dir.join("tensorboard")));
    Options { steps: 100, quiet: true, jsonl, tensorboard, ..Options::default() }
}

fn lines(dir: &Path) -> Vec<Value> {
    let text = fs::read_to_string(dir.join("log.jsonl")).unwrap();
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn a_resumed_log_goes_on_behind_the_checkpoint() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path();
    let mut log = Log::open(&options(dir), 0).unwrap();
    for n in 1..=7 {
        log.step(&step(n)).unwrap();
        if n % 2 == 0 {
            log.evaluation(n, &[("loss", n as f64)]).unwrap();
        }
    }
    log.sync().unwrap();
    drop(log);
    assert_eq!(lines(dir).len(), 10);
    let first = &lines(dir)[0];
    for (key, wanted) in
        [("loss", step(1).loss), ("grad_norm", 0.3), ("lr", 1e-4), ("tokens_per_second", 4000.0)]
    {
        assert_eq!(first[key].as_f64(), Some(wanted), "{key}");
    }
    assert!(!cfg!(target_os = "linux") || first["memory_mib"].as_f64().unwrap() > 1.0);

    // Killed in the middle of a line, then resumed from the checkpoint of step 4.
    let file = dir.join("log.jsonl");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, &text[..text.len() - 9]).unwrap();
    let mut log = Log::open(&options(dir), 4).unwrap();
    let point = |n| Point { step: n, loss: step(n).loss, lr: step(n).lr };
    assert_eq!(log.points, [1, 2, 3, 4].map(point));
    log.step(&step(5)).unwrap();
    assert_eq!(log.points, [1, 2, 3, 4, 5].map(point));
    let kept: Vec<_> = lines(dir).iter().map(|l| (l["step"].as_u64().unwrap(), l["kind"].clone())).collect();
    let wanted =
        [(1, "train"), (2, "train"), (2, "eval"), (3, "train"), (4, "train"), (4, "eval"), (5, "train")];
    assert_eq!(kept, wanted.map(|(n, kind)| (n, Value::from(kind))));

    // One run at a time writes it. A new one forgets what the old one wrote.
    refused(Log::open(&options(dir), 0), &["log.jsonl is another run's", "name another"]);
    drop(log);
    assert!(Log::open(&options(dir), 0).unwrap().points.is_empty());
    assert_eq!(fs::read(&file).unwrap(), b"");
}

#[test]
#[ignore = "run by the test below"]
fn speaks() {
    let Some(folder) = child_folder() else { return };
    let quiet = folder.ends_with("quiet");
    let mut log = Log::open(&Options { steps: 100, quiet, ..Options::default() }, 7).unwrap();
    log.step(&step(8)).unwrap();
    log.evaluation(8, &[("loss", 4.54801), ("accuracy", 0.25)]).unwrap();
    log.finish();
}

/// Where stderr is no terminal there is no bar, and the lines are all there is.
#[test]
fn a_step_is_one_line_on_stderr() {
    let said = |how: &str| {
        let output = child("training_files::logs::speaks", how.as_ref()).wait_with_output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let lines = said("loud");
    let (first, rest) = lines.split_once('\n').unwrap();
    let start = "step   8/100  loss 0.1235  grad 2.4000  lr 1.250e-5  4000 tokens/s";
    assert!(first.starts_with(start), "{first}");
    assert!(!cfg!(target_os = "linux") || first.ends_with(" MiB"), "{first}");
    assert_eq!(rest, "step 8  evaluation: loss 4.5480  accuracy 0.2500\n");
    assert_eq!(said("quiet"), "");
}

#[test]
fn a_file_that_is_no_log_is_left_alone() {
    let tmp = tempfile::tempdir().unwrap();
    let file = tmp.path().join("log.jsonl");
    for (text, line) in [
        ("a text that somebody wrote\n", "line 1"),
        ("a text without an end", "line 1"),
        ("{\"step\": 1}\n{\"text\": \"data\"}\n", "line 2"),
        ("{\"model\": \"a configuration\"}", "line 1"),
        ("{\n  \"step\": 3\n}\n", "line 1"),
        ("\n", "line 1"),
    ] {
        fs::write(&file, text).unwrap();
        refused(Log::open(&options(tmp.path()), 0), &["log.jsonl", line, "name another"]);
        assert_eq!(fs::read_to_string(&file).unwrap(), text);
    }
}

/// A protobuf message's fields: number and payload, by the wire types that event files use.
fn fields(mut message: &[u8]) -> Vec<(u64, Vec<u8>)> {
    fn varint(message: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = message[0];
            *message = &message[1..];
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return value;
            }
        }
    }
    let mut list = Vec::new();
    while !message.is_empty() {
        let key = varint(&mut message);
        let length = match key & 7 {
            0 => {
                list.push((key >> 3, varint(&mut message).to_le_bytes().to_vec()));
                continue;
            }
            1 => 8,
            2 => varint(&mut message) as usize,
            5 => 4,
            other => panic!("wire type {other}"),
        };
        list.push((key >> 3, message[..length].to_vec()));
        message = &message[length..];
    }
    list
}

/// The messages of an event file, each checksum checked bit by bit.
fn events(file: &Path) -> Vec<Vec<(u64, Vec<u8>)>> {
    fn masked(data: &[u8]) -> u32 {
        let mut crc = !0u32;
        for byte in data {
            crc ^= u32::from(*byte);
            (0..8).for_each(|_| crc = crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 });
        }
        let crc = !crc;
        crc.rotate_right(15).wrapping_add(0xa282_ead8)
    }
    let all = fs::read(file).unwrap();
    let (mut rest, mut list) = (all.as_slice(), Vec::new());
    while !rest.is_empty() {
        let u32_at = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
        let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        assert_eq!(u32_at(8), masked(&rest[..8]));
        assert_eq!(u32_at(12 + length), masked(&rest[12..12 + length]));
        list.push(fields(&rest[12..12 + length]));
        rest = &rest[16 + length..];
    }
    list
}

#[test]
fn tensorboard_files_hold_every_step() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path();
    let mut log = Log::open(&options(dir), 0).unwrap();
    (1..=300).for_each(|n| log.step(&step(n)).unwrap());
    drop(log);
    let mut log = Log::open(&options(dir), 200).unwrap();
    log.step(&step(201)).unwrap();
    let mut files: Vec<_> =
        fs::read_dir(dir.join("tensorboard")).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    assert_eq!(files.len(), 2);
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
    let [first, second] = [events(&files[0]), events(&files[1])];
    assert_eq!((first.len(), second.len()), (302, 3));
    assert_eq!(first[0][2], (3, b"brain.Event:2".to_vec()));
    // SessionLog { status: START } at the step that the resumed run starts with.
    assert_eq!((number(&second[1][1].1), &second[1][2]), (201, &(7, vec![8, 1])));
    for (n, event) in (1..).zip(&first[2..]) {
        let [(1, time), (2, at), (5, summary)] = event.as_slice() else { panic!("{event:?}") };
        assert!(f64::from_le_bytes(time.as_slice().try_into().unwrap()) > 1.7e9);
        assert_eq!(number(at), n);
        let (_, value) = &fields(summary)[0];
        let [(1, tag), (2, loss)] = &fields(value)[..] else { panic!("{value:?}") };
        assert_eq!(tag, b"train/loss");
        assert_eq!(f32::from_le_bytes(loss.as_slice().try_into().unwrap()), step(n).loss as f32);
    }
}

#[test]
fn the_plot_draws_every_point() {
    let tmp = tempfile::tempdir().unwrap();
    let file = tmp.path().join("plot.svg");
    let point = |n: u64| Point { step: n, loss: step(n).loss, lr: step(n).lr };
    let draw = |points: &[Point]| plot::draw(&file, points, &[]).map(|()| fs::read_to_string(&file).unwrap());
    let svg = draw(&(1..=250).map(point).collect::<Vec<_>>()).unwrap();
    assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"), "{svg}");
    assert!(svg.contains("loss") && svg.contains("learning rate"));
    let curves: Vec<&str> = svg.lines().filter(|l| l.contains("<polyline")).collect();
    let longest =
        |l: &&&str| l.split("points=\"").nth(1).unwrap().split('"').next().unwrap().split(' ').count() >= 250;
    assert_eq!(curves.iter().filter(longest).count(), 3, "loss, smoothed loss, learning rate");
    // One step, and a run that stands still, have no extent of their own.
    draw(&[point(1)]).unwrap();
    draw(&[point(1), Point { step: 2, ..point(1) }]).unwrap();
    refused(plot::draw(&file, &[], &[]), &["plot.svg", "no step"]);
    plot::draw(&file, &[point(1), point(2)], &[(0, 0.5), (2, 0.7)]).unwrap();
    let svg = fs::read_to_string(&file).unwrap();
    assert!(svg.contains("evaluations") && svg.contains("learning rate"));
}
