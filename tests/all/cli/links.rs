//! An output that is a link, and an output that is the input under another name.
#![cfg(unix)]

use super::*;
use std::os::unix::fs::symlink;

#[test]
fn a_link_stays_and_its_target_is_written() {
    let (tiny, dir, far) = (Tiny::new(), folder(), folder());
    let link = dir.path().join("v.npy");
    let encode = || llm2vec(&["encode", "-m", tiny.path(), "-i", prose(), "-o", str(&link)]);
    let target = far.path().join("real.npy");
    symlink(&target, dir.path().join("between")).unwrap();
    symlink("between", &link).unwrap();
    // First it dangles, then there is a file.
    for _ in 0..2 {
        good(encode());
        assert!(link.symlink_metadata().unwrap().is_symlink());
        assert!(target.symlink_metadata().unwrap().is_file());
        assert_eq!(npy::read(&target).unwrap().shape, [21, 32]);
        assert_eq!((names(dir.path()).len(), names(far.path()).len()), (2, 1));
        fs::write(&target, "older").unwrap();
    }
    fs::remove_file(&link).unwrap();
    symlink("v.npy", &link).unwrap();
    failed(encode().output().unwrap(), 1, &["leads back to itself"]);
    fs::remove_file(&link).unwrap();
    symlink("/dev/null", &link).unwrap();
    failed(encode().output().unwrap(), 1, &["v.npy", "is a device or a pipe"]);
    symlink("nowhere/v.npy", dir.path().join("w.npy")).unwrap();
    let lost = dir.path().join("w.npy");
    let args = ["encode", "-m", tiny.path(), "-i", prose(), "-o", str(&lost)];
    failed(llm2vec(&args).output().unwrap(), 1, &["no folder", "nowhere"]);
}

#[test]
fn the_input_under_another_name() {
    let (tiny, dir) = (Tiny::new(), folder());
    let own = dir.path().join("own.jsonl");
    fs::write(&own, "{\"text\": \"one\"}\n").unwrap();
    let (soft, hard) = (dir.path().join("soft.jsonl"), dir.path().join("hard.jsonl"));
    symlink("own.jsonl", &soft).unwrap();
    fs::hard_link(&own, &hard).unwrap();
    let refused = |input: &str, output: &Path, more: &[&str]| {
        let args = ["encode", "-m", tiny.path(), "--input-format", "jsonl", "-i", input, "-o", str(output)];
        let mut command = llm2vec(&[&args[..], more].concat());
        let run = command.stdin(fs::File::open(&own).unwrap()).output().unwrap();
        failed(run, 2, &[str(output), "is the input"]);
    };
    for output in [&own, &soft, &hard] {
        for input in [str(&own), str(&soft), str(&hard), "-"] {
            refused(input, output, &[]);
        }
        refused(str(&own), output, &["--nearest", "1"]);
    }
    let data = dir.path().join("data.tsv");
    fs::write(&data, "subset\tscore\tsentence1\tsentence2\na\t1\tb\tc\n").unwrap();
    let (soft, hard) = (dir.path().join("soft.json"), dir.path().join("hard.json"));
    symlink("data.tsv", &soft).unwrap();
    fs::hard_link(&data, &hard).unwrap();
    for output in [&data, &soft, &hard] {
        for input in [&data, dir.path()] {
            let args = ["eval", "sts", "-m", tiny.path(), "--data", str(input), "-o", str(output)];
            failed(llm2vec(&args).output().unwrap(), 2, &[str(output), "is one of the files read"]);
        }
    }
    assert!(fs::read_to_string(&data).unwrap().starts_with("subset"));
}
