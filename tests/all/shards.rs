//! Encoding in parts: the parts joined are the whole, byte for byte, under every engine's variables; what is no whole is
//! refused by name; what is done is not done again.

use crate::command::{Tiny, failed, folder, good, llm2vec, names, prose, str};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const VARIABLES: [&str; 10] = [
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "PMI_RANK",
    "PMI_SIZE",
    "RANK",
    "WORLD_SIZE",
    "SLURM_PROCID",
    "SLURM_NTASKS",
    "SLURM_ARRAY_TASK_ID",
    "LOCAL_RANK",
];

/// `encode` of the shipped sentences into `out`, free of what an engine around the test has set.
fn encode(tiny: &Tiny, out: &Path, more: &[&str]) -> Command {
    let own = ["encode", "-m", tiny.path(), "-i", prose(), "-o", str(out), "-q"];
    let mut command = llm2vec(&[&own[..], more].concat());
    for name in VARIABLES {
        command.env_remove(name);
    }
    command
}

fn parts(dir: &Path, stem: &str, ending: &str, of: u64) -> Vec<PathBuf> {
    (1..=of).map(|i| dir.join(format!("{stem}-{i:05}-of-{of:05}.{ending}"))).collect()
}

fn join(parts: &[PathBuf], out: &Path) -> Command {
    let list: Vec<&str> = parts.iter().map(|part| str(part)).collect();
    llm2vec(&[&["join", "-o", str(out), "-q"], list.as_slice()].concat())
}

/// Every file of an output, by what follows the stem.
fn content(dir: &Path, stem: &str) -> Vec<(String, Vec<u8>)> {
    let of = |name: &String| name.strip_prefix(stem).filter(|rest| rest.starts_with('.')).map(String::from);
    let files = names(dir).into_iter().filter_map(|name| of(&name).map(|rest| (rest, dir.join(&name))));
    files.map(|(rest, path)| (rest, fs::read(path).unwrap())).collect()
}

#[test]
fn parts_joined_are_the_whole() {
    let (tiny, dir) = (Tiny::new(), folder());
    for (ending, more) in [
        ("npy", &[][..]),
        ("npy", &["--output-dtype", "i8"]),
        ("npy", &["--output-dtype", "binary", "--normalize"]),
        ("npy", &["--level", "word", "--output-dtype", "i8"]),
        ("safetensors", &["--output-dtype", "f16"]),
        ("safetensors", &["--level", "token"]),
        ("jsonl", &[]),
        ("jsonl", &["--level", "word"]),
    ] {
        let whole = dir.path().join(format!("whole.{ending}"));
        good(encode(&tiny, &whole, more));
        for of in [1, 2, 3, 7, 16, 40] {
            let dir = folder();
            let out = dir.path().join(format!("part.{ending}"));
            for i in 0..of {
                let mut command = encode(&tiny, &out, &[&["--shard", "auto"], more].concat());
                command.env("RANK", i.to_string()).env("WORLD_SIZE", of.to_string());
                good(command);
            }
            let joined = dir.path().join(format!("joined.{ending}"));
            // In any order.
            let mut list = parts(dir.path(), "part", ending, of);
            list.rotate_left(of as usize / 2);
            good(join(&list, &joined));
            assert!(
                content(dir.path(), "joined") == content(whole.parent().unwrap(), "whole"),
                "{ending} {more:?} {of}"
            );
        }
        content(dir.path(), "whole")
            .iter()
            .for_each(|(rest, _)| fs::remove_file(dir.path().join(format!("whole{rest}"))).unwrap());
    }
}

/// The variables do nothing without `--shard auto`, and with it what they say.
#[test]
fn engines_say_which_part_it_is() {
    let (tiny, dir) = (Tiny::new(), folder());
    let out = dir.path().join("v.npy");
    let run = |more: &[&str], set: &[(&str, &str)]| {
        let mut command = encode(&tiny, &out, more);
        command.envs(set.iter().copied());
        command
    };
    good(run(&[], &[("RANK", "1"), ("WORLD_SIZE", "2")]));
    assert_eq!(names(dir.path()), ["v.npy"]);
    for (shard, set) in [
        ("auto", [("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "3")]),
        ("auto", [("PMI_RANK", "1"), ("PMI_SIZE", "3")]),
        ("auto", [("SLURM_PROCID", "1"), ("SLURM_NTASKS", "3")]),
        ("auto/3", [("SLURM_ARRAY_TASK_ID", "2"), ("SLURM_PROCID", "0")]),
    ] {
        good(run(&["--shard", shard], &set));
        let part = &parts(dir.path(), "v", "npy", 3)[1];
        let record = PathBuf::from(format!("{}.part.json", part.display()));
        assert!(part.exists() && record.exists(), "{set:?}: {:?}", names(dir.path()));
        [part, &record].iter().for_each(|file| fs::remove_file(file).unwrap());
    }
    failed(run(&["--shard", "auto"], &[]).output().unwrap(), 2, &["mpirun", "I/N"]);
    failed(run(&["--shard", "auto"], &[("RANK", "0")]).output().unwrap(), 2, &["RANK", "WORLD_SIZE"]);
    failed(run(&["--skip-done"], &[]).output().unwrap(), 2, &["--shard"]);
}

#[test]
fn what_makes_no_whole_is_refused_by_name() {
    let (tiny, dir) = (Tiny::new(), folder());
    let make = |name: &str, shard: &str, more: &[&str]| {
        let out = dir.path().join(name);
        good(encode(&tiny, &out, &[&["--shard", shard], more].concat()));
        out
    };
    let all: Vec<PathBuf> = (1..=3).map(|i| make(&format!("{i}.npy"), &format!("{i}/3"), &[])).collect();
    let out = dir.path().join("out.npy");
    let refused = |list: &[&PathBuf], words: &[&str]| {
        let list: Vec<PathBuf> = list.iter().map(|path| path.to_path_buf()).collect();
        let output = join(&list, &out).output().unwrap();
        let status = output.status.code().unwrap();
        failed(output, status, words);
        assert!(status == 1 || status == 2);
        assert!(!out.exists());
    };
    let [one, two, three] = [&all[0], &all[1], &all[2]];
    refused(&[one, three], &["part 2 of 3 is missing"]);
    let twice = make("twice.npy", "2/3", &[]);
    refused(&[one, two, three, &twice], &["twice.npy", "is part 2 of 3, as", "2.npy is"]);
    refused(&[one, two, &make("four.npy", "3/4", &[])], &["four.npy", "of 3 parts there, of 4 here"]);
    refused(&[one, two, &make("f16.npy", "3/3", &["--output-dtype", "f16"])], &["f16.npy", "another form"]);
    refused(
        &[one, two, &make("causal.npy", "3/3", &["--attention", "causal"])],
        &["causal.npy", "another settings"],
    );
    refused(
        &[one, two, &make("told.npy", "3/3", &["--instruction", "x"])],
        &["told.npy", "another instruction"],
    );
    refused(&[one, two, &make("3.jsonl", "3/3", &[])], &["3.jsonl", "another kind"]);

    let mut other = Tiny::new();
    other.tensor("model.norm.weight").2[0] ^= 1;
    other.write();
    let path = dir.path().join("model.npy");
    good(encode(&other, &path, &["--shard", "3/3"]));
    refused(&[one, two, &path], &["model.npy", "another weights"]);
    let (text, path) = (dir.path().join("text.txt"), dir.path().join("input.npy"));
    fs::write(&text, fs::read_to_string(prose()).unwrap().replace("rain", "snow")).unwrap();
    let run = ["encode", "-m", tiny.path(), "-i", str(&text), "-o", str(&path), "-q", "--shard", "3/3"];
    good(llm2vec(&run));
    refused(&[one, two, &path], &["input.npy", "another input"]);

    let bytes = fs::read(three).unwrap();
    fs::write(three, &bytes[..bytes.len() - 1]).unwrap();
    refused(&[one, two, three], &["3.npy", "cut short or changed"]);
    fs::remove_file(three).unwrap();
    refused(&[one, two, three], &["3.npy"]);
    fs::write(three, &bytes).unwrap();
    good(join(&all, &out));
    let bare = dir.path().join("bare.npy");
    fs::copy(one, &bare).unwrap();
    fs::remove_file(&out).unwrap();
    refused(&[&bare, two, three], &["bare.npy", "no record"]);
    failed(join(&all, one).output().unwrap(), 2, &["is one of the parts"]);
    failed(join(&all, &dir.path().join("out.jsonl")).output().unwrap(), 2, &["out.jsonl", "1.npy"]);
}

/// A part that is whole and of this run stays as it is, whose time tells; any other is encoded again.
#[test]
fn what_is_done_is_left_alone() {
    let (tiny, dir) = (Tiny::new(), folder());
    let out = dir.path().join("v.npy");
    let run = |more: &[&str]| good(encode(&tiny, &out, &[&["--shard", "2/3", "--skip-done"], more].concat()));
    let seen = || fs::metadata(&out).unwrap().modified().unwrap();
    run(&[]);
    let first = seen();
    run(&[]);
    assert_eq!(seen(), first, "it was whole");
    let bytes = fs::read(&out).unwrap();
    fs::write(&out, &bytes[..bytes.len() - 4]).unwrap();
    run(&[]);
    assert!(fs::read(&out).unwrap() == bytes, "it was cut short");
    let second = seen();
    run(&["--normalize"]);
    assert!(seen() != second && fs::read(&out).unwrap() != bytes, "it was of other settings");
}
