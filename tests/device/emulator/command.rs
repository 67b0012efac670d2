//! `llm2vec emulate`, from file to file.

use llm2vec::format::npy;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// It counts to n.
const SPIN: &str = "
.version 8.0
.target sm_80
.address_size 64
.visible .entry spin(.param .u32 n)
{
    .reg .pred %q; .reg .b32 %r<2>;
    ld.param.u32 %r0, [n];
    mov.u32 %r1, 0;
L:
    add.u32 %r1, %r1, 1;
    setp.lt.u32 %q, %r1, %r0;
    @%q bra L;
    ret;
}
";

fn emulate(dir: &Path, ptx: &str, args: &str) -> Output {
    let ptx = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/emulator/tests/conformance/ptx").join(ptx);
    let mut command = Command::new(env!("CARGO_BIN_EXE_llm2vec"));
    command
        .current_dir(dir)
        .arg("emulate")
        .arg("--ptx")
        .arg(ptx)
        .args(args.split_whitespace())
        .output()
        .unwrap()
}

fn save(path: &Path, values: &[f32]) {
    let mut bytes = npy::header("<f4", &[values.len() as u64]);
    values.iter().for_each(|v| bytes.extend(v.to_le_bytes()));
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn arrays_go_in_and_come_out() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (super::noise(100, 1), super::noise(100, 2));
    save(&dir.path().join("a.npy"), &a);
    save(&dir.path().join("b.npy"), &b);
    let args = "--kernel vector_add --grid 2 --block 32 --arg out:f32:10,10:c.npy --arg f32:a.npy --arg f32:b.npy \
                --arg i32=100 --seed 3 --counters json";
    let output = emulate(dir.path(), "basics.ptx", args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["total"]["global_bytes"], 1200);
    let c = npy::read(&dir.path().join("c.npy")).unwrap();
    let sum = a.iter().zip(&b).map(|(a, b)| a + b).collect();
    assert_eq!(c, npy::Npy { shape: vec![10, 10], data: npy::Data::F32(sum) });
}

#[test]
fn tensor_maps_and_clusters() {
    let dir = tempfile::tempdir().unwrap();
    let x = super::noise(64 * 96, 3);
    let mut file = npy::header("<f4", &[64, 96]);
    x.iter().for_each(|v| file.extend(v.to_le_bytes()));
    std::fs::write(dir.path().join("x.npy"), file).unwrap();
    let args = "--kernel tma_transpose --grid 2 --block 160 --arg map:32,32:128:f32:x.npy \
                --arg map:32,32:0:out:f32:96,64:y.npy --arg i32=3 --arg i32=2";
    let output = emulate(dir.path(), "async_sm90.ptx", args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let turned = (0..96 * 64).map(|i| x[i % 64 * 96 + i / 64]).collect();
    let y = npy::read(&dir.path().join("y.npy")).unwrap();
    assert_eq!(y, npy::Npy { shape: vec![96, 64], data: npy::Data::F32(turned) });
    let fails = |args: &str, words: &str| {
        let output = emulate(dir.path(), "async_sm90.ptx", args);
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && text.contains(words) && text.lines().count() == 1, "{text}");
    };
    let kernel = "--kernel tma_transpose --block 160";
    fails(&format!("{kernel} --arg map:32,64:128:f32:x.npy"), "the swizzle takes at most 128");
    fails(&format!("{kernel} --arg map:32,32:16:f32:x.npy"), "a swizzle of 0, 32, 64 or 128 bytes");
    fails(&format!("{kernel} --arg map:32:0:f32:x.npy"), "one stride less");
    fails(&format!("{kernel} --arg map:32,32:f32:x.npy"), "map:TILE:SWIZZLE:ARRAY");
    fails("--kernel ring --block 64 --grid 3 --cluster 2", "no whole number of clusters");
    fails("--kernel cluster_sum --block 32 --grid 8 --cluster 8", "the kernel was compiled for");
}

#[test]
fn what_goes_wrong_is_one_line() {
    let dir = tempfile::tempdir().unwrap();
    save(&dir.path().join("a.npy"), &[1.0; 64]);
    let fails = |ptx: &str, args: &str, status: i32, words: &[&str]| {
        let output = emulate(dir.path(), ptx, args);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{text}");
        assert!(words.iter().all(|w| text.contains(w)) && text.lines().count() == 1, "{text}");
        assert!(!dir.path().join("y.npy").exists());
    };
    let bug = "--kernel out_of_bounds --block 65 --arg out:f32:64:y.npy --arg f32:a.npy --arg i32=64";
    fails("bugs.ptx", bug, 1, &["out of bounds", "bugs.cu:10 ", "past the end of arg0 (256 bytes)"]);
    fails("bugs.ptx", "--kernel nothing --block 1", 2, &["no kernel nothing", "warp_race"]);
    fails("bugs.ptx", "--kernel misaligned --block 1,2,3,4", 2, &["--block 1,2,3,4"]);
    fails("bugs.ptx", "--kernel misaligned --block 1 --arg f99:a", 2, &["--arg f99:a"]);
    fails("bugs.ptx", "--kernel misaligned --block 1 --arg i32:a.npy", 1, &["a.npy", "another type"]);
    fails("none.ptx", "--kernel misaligned --block 1", 1, &["none.ptx"]);
}

/// Each thread of a block adds 1 by a loop of `atom.cas`, whose first value is read plainly.
const CAS: &str = "
.version 8.0
.target sm_80
.address_size 64
.visible .entry add(.param .u64 x)
{
    .reg .pred %q; .reg .b32 %r<4>; .reg .b64 %d<2>;
    ld.param.u64 %d0, [x];
    ld.global.u32 %r1, [%d0];
L:
    add.u32 %r2, %r1, 1;
    atom.global.cas.b32 %r3, [%d0], %r1, %r2;
    setp.ne.u32 %q, %r1, %r3;
    mov.u32 %r1, %r3;
    @%q bra L;
    ret;
}
";

/// What is only noted, what is gone on behind, and what the status says of it.
#[test]
fn notes_and_errors() {
    let dir = tempfile::tempdir().unwrap();
    save(&dir.path().join("a.npy"), &[1.0; 64]);
    std::fs::write(dir.path().join("cas.ptx"), CAS).unwrap();
    let ran = |ptx: &str, args: &str, status: i32| {
        let output = emulate(dir.path(), ptx, args);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{args}: {text}");
        (text.lines().map(str::to_string).collect::<Vec<_>>(), String::from_utf8(output.stdout).unwrap())
    };
    let written = || std::fs::remove_file(dir.path().join("y.npy")).is_ok();
    let bug = "--kernel out_of_bounds --block 65 --arg out:f32:64:y.npy --arg f32:a.npy --arg i32=64 --counters json";
    let (lines, counters) = ran("bugs.ptx", &format!("{bug} --keep-going"), 1);
    assert!(lines[0].starts_with("error, once: out-of-bounds in out_of_bounds at bugs.cu:10 "), "{lines:?}");
    assert!(lines.last().unwrap().contains("no output was written") && !written(), "{lines:?}");
    assert!(counters.contains("\"total\""), "{counters}");
    let (lines, _) = ran("bugs.ptx", &format!("{bug} --allow race,out-of-bounds"), 0);
    assert!(lines[0].starts_with("note, once: out-of-bounds in ") && written(), "{lines:?}");
    let (lines, _) = ran("bugs.ptx", &format!("{bug} --allow race"), 1);
    assert!(lines.len() == 1 && !written(), "{lines:?}");
    let (lines, _) = ran("bugs.ptx", &format!("{bug} --allow races"), 2);
    assert!(lines.concat().contains("out-of-bounds, misaligned, access"), "{lines:?}");
    let cas = dir.path().join("cas.ptx");
    std::fs::write(dir.path().join("x.npy"), [npy::header("<i4", &[1]), vec![0; 4]].concat()).unwrap();
    let add = "--kernel add --grid 2 --block 64 --arg inout:i32:x.npy:y.npy";
    let (lines, _) = ran(cas.to_str().unwrap(), add, 0);
    assert!(lines[0].starts_with("note, ") && lines[0].contains("a plain first read before"), "{lines:?}");
    assert_eq!(npy::read(&dir.path().join("y.npy")).unwrap().data, npy::Data::I32(vec![128]));
    assert!(written());
    let (lines, _) = ran(cas.to_str().unwrap(), &format!("{add} --strict"), 1);
    assert!(lines.len() == 1 && lines[0].contains("race in add at ") && !written(), "{lines:?}");
}

/// `-t` counts the threads of the pool and of a launch alike.
#[test]
#[cfg(target_os = "linux")]
fn the_command_has_so_many_threads() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("spin.ptx");
    std::fs::write(&file, SPIN).unwrap();
    let most = |threads: usize| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_llm2vec"));
        command.args(["-t", &threads.to_string(), "emulate", "--kernel", "spin", "--grid", "160"]);
        command.args(["--block", "32", "--arg", "i32=10000", "--ptx"]).arg(&file).stdout(Stdio::null());
        let (mut child, mut most) = (command.spawn().unwrap(), 0);
        let tasks = format!("/proc/{}/task", child.id());
        while child.try_wait().unwrap().is_none() {
            most = most.max(std::fs::read_dir(&tasks).map_or(0, Iterator::count));
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(child.wait().unwrap().success());
        most
    };
    // Two more in the pool, two more in the launch.
    assert_eq!(most(3), most(1) + 4);
}
