//! Vectors that are written, and `.npy` files read back.

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex},
};

use half::f16;
use llm2vec::{
    error::Error,
    format::{
        hf::Checkpoint,
        npy::{self, Data},
        output::{Output, OutputDtype},
    },
};
use safetensors::Dtype;
use serde_json::Value;

use super::{file_names, folder, refused};

const DIM: usize = 4;
const ALL: [OutputDtype; 3] = [OutputDtype::F32, OutputDtype::F16, OutputDtype::I8];

/// Rows with zeros, a tiny row, and mixed signs.
fn rows() -> Vec<f32> {
    let mut rows = vec![0.0; DIM];
    rows.extend([1e-42, -3e-42, 0.0, 2e-42]);
    rows.extend((0..DIM * 9).map(|i| ((i * 7919) % 101) as f32 / 25.0 - 2.0));
    rows
}

fn write(path: &Path, rows: &[f32], dtype: OutputDtype) {
    let mut output = Output::create(path.to_str().unwrap(), DIM, dtype).unwrap();
    let (first, rest) = rows.split_at(DIM);
    output.write_rows(first).unwrap();
    output.write_rows(&[]).unwrap();
    output.write_rows(rest).unwrap();
    assert_eq!(output.finish().unwrap(), (rows.len() / DIM) as u64);
}

/// What should come back: f32 exactly, f16 rounded, i8 within half a step.
fn check(got: &[f32], scales: &[f32], dtype: OutputDtype) {
    let want = rows();
    assert_eq!(got.len(), want.len());
    for (i, (got, value)) in got.iter().zip(&want).enumerate() {
        match dtype {
            OutputDtype::F32 => assert_eq!(got, value),
            OutputDtype::F16 => assert_eq!(*got, f16::from_f32(*value).to_f32()),
            OutputDtype::I8 => {
                let scale = scales[i / DIM];
                let most = want_max(&want, i / DIM);
                // A denormal scale is itself rounded: up to half of the smallest float, 127 times.
                let bound = 0.5001 * scale + 1.3e-43;
                assert!(scale >= 0.0 && (scale - most / 127.0).abs() <= 1e-6 * most);
                assert!((got * scale - value).abs() <= bound, "{i}: {got} * {scale} for {value}");
            }
            OutputDtype::Binary | OutputDtype::Ubinary => unreachable!("bits have a test of their own"),
        }
    }
}

fn want_max(rows: &[f32], row: usize) -> f32 {
    rows[row * DIM..(row + 1) * DIM].iter().fold(0.0, |m, v| m.max(v.abs()))
}

#[test]
fn npy_round_trip() {
    for dtype in ALL {
        let dir = folder();
        let path = dir.path().join("v.npy");
        write(&path, &rows(), dtype);
        let i8 = dtype == OutputDtype::I8;
        let names = if i8 { vec!["v.npy", "v.scale.npy"] } else { vec!["v.npy"] };
        assert_eq!(file_names(dir.path()), names);
        let bytes = fs::read(&path).unwrap();
        assert_eq!((bytes[..8].to_vec(), bytes[127]), (b"\x93NUMPY\x01\0".to_vec(), b'\n'));
        let got = npy::read(&path).unwrap();
        assert_eq!(got.shape, [11, DIM]);
        let scales = if i8 { npy::read(&dir.path().join("v.scale.npy")).unwrap().to_f32() } else { vec![] };
        check(&got.to_f32(), &scales, dtype);
    }
}

#[test]
fn safetensors_round_trip() {
    for dtype in ALL {
        let dir = folder();
        let path = dir.path().join("v.safetensors");
        write(&path, &rows(), dtype);
        assert_eq!(file_names(dir.path()), ["v.safetensors"]);
        let file = Checkpoint::open_file(&path).unwrap();
        let tensor = file.get("embeddings").unwrap();
        assert_eq!(tensor.shape, [11, DIM]);
        let floats =
            |data: &[u8]| -> Vec<f32> { data.as_chunks().0.iter().map(|c| f32::from_le_bytes(*c)).collect() };
        let got: Vec<f32> = match tensor.dtype {
            Dtype::F32 => floats(tensor.data),
            Dtype::F16 => tensor.data.as_chunks().0.iter().map(|c| f16::from_le_bytes(*c).to_f32()).collect(),
            _ => tensor.data.iter().map(|b| f32::from(*b as i8)).collect(),
        };
        let scales = file.get("scale").map(|t| floats(t.data)).unwrap_or_default();
        assert_eq!(scales.len(), if dtype == OutputDtype::I8 { 11 } else { 0 });
        check(&got, &scales, dtype);
    }
}

#[test]
fn jsonl_round_trip() {
    for dtype in ALL {
        let dir = folder();
        let path = dir.path().join("v.jsonl");
        write(&path, &rows(), dtype);
        let (mut got, mut scales) = (vec![], vec![]);
        for (i, line) in fs::read_to_string(&path).unwrap().lines().enumerate() {
            let row: Value = serde_json::from_str(line).unwrap();
            assert_eq!(row["index"], i);
            got.extend(row["embedding"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32));
            scales.extend(row.get("scale").map(|v| v.as_f64().unwrap() as f32));
        }
        check(&got, &scales, dtype);
    }
}

#[test]
fn no_rows_is_a_file_of_no_rows() {
    let dir = folder();
    for name in ["v.npy", "v.safetensors", "v.jsonl"] {
        let output = Output::create(dir.path().join(name).to_str().unwrap(), DIM, OutputDtype::I8).unwrap();
        assert_eq!(output.finish().unwrap(), 0);
    }
    assert_eq!(npy::read(&dir.path().join("v.npy")).unwrap().shape, [0, DIM]);
    assert_eq!(npy::read(&dir.path().join("v.scale.npy")).unwrap().shape, [0]);
    let file = Checkpoint::open_file(&dir.path().join("v.safetensors")).unwrap();
    assert_eq!(file.get("embeddings").unwrap().shape, [0, DIM]);
}

#[test]
fn nothing_is_left_without_finish_and_the_old_file_stays() {
    let dir = folder();
    for name in ["v.npy", "v.safetensors", "v.jsonl"] {
        let path = dir.path().join(name);
        fs::write(&path, "old").unwrap();
        let mut output = Output::create(path.to_str().unwrap(), DIM, OutputDtype::I8).unwrap();
        output.write_rows(&rows()).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        drop(output);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(file_names(dir.path()), [name]);
        write(&path, &rows(), OutputDtype::F32);
        assert_ne!(fs::read(&path).unwrap(), b"old");
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn outputs_that_cannot_be_are_refused() {
    let dir = folder();
    let create =
        |name: &str, dim| Output::create(dir.path().join(name).to_str().unwrap(), dim, OutputDtype::F16);
    for name in ["v.txt", "v", "v.npy.gz"] {
        assert!(matches!(create(name, DIM), Err(Error::Usage(_))));
        refused(create(name, DIM), &[".npy", ".safetensors", ".jsonl"]);
    }
    refused(create("v.npy", 0), &["0 elements"]);
    refused(create("none/v.npy", DIM), &["v.npy", "no folder"]);
    fs::create_dir(dir.path().join("d.npy")).unwrap();
    refused(create("d.npy", DIM), &["is a folder"]);
    let mut output = create("v.npy", DIM).unwrap();
    refused(output.write_rows(&[0.0; DIM + 1]), &["5 elements", "multiple"]);
    output.write_rows(&[1.0; DIM]).unwrap();
    for (bad, word) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (70000.0, "f16")] {
        let mut output = create("w.npy", DIM).unwrap();
        output.write_rows(&[1.0; DIM]).unwrap();
        refused(output.write_rows(&[0.0, 0.0, bad, 0.0]), &["row 1, column 2", word]);
        refused(output.write_rows(&[1.0; DIM]), &["earlier row"]);
        refused(output.finish(), &["earlier row"]);
    }
    drop(output);
    assert_eq!(file_names(dir.path()), ["d.npy"]);
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn jsonl_streams_print_the_shortest_numbers() {
    for (dtype, line) in [
        (OutputDtype::F32, r#"{"index":0,"embedding":[0.1,-1.0]}"#),
        (OutputDtype::F16, r#"{"index":0,"embedding":[0.099975586,-1.0]}"#),
        (OutputDtype::I8, r#"{"index":0,"embedding":[13,-127],"scale":0.007874016}"#),
    ] {
        let shared = Shared::default();
        let mut output = Output::jsonl_to(Box::new(shared.clone()), "memory", 2, dtype).unwrap();
        output.write_rows(&[0.1, -1.0]).unwrap();
        assert_eq!(output.finish().unwrap(), 1);
        assert_eq!(String::from_utf8(shared.0.lock().unwrap().clone()).unwrap(), format!("{line}\n"));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_one_clear_error() {
    let full = || Box::new(fs::File::options().write(true).open("/dev/full").unwrap());
    let mut output = Output::jsonl_to(full(), "target.jsonl", DIM, OutputDtype::F32).unwrap();
    output.write_rows(&rows()).unwrap(); // still in the buffer
    refused(output.finish(), &["target.jsonl", "disk is full after about 11 rows"]);
    let mut output = Output::jsonl_to(full(), "target.jsonl", DIM, OutputDtype::F32).unwrap();
    let result = (0..1 << 20).try_for_each(|_| output.write_rows(&rows()));
    refused(result, &["target.jsonl", "disk is full"]);
    refused(output.finish(), &["earlier row"]);
}

#[test]
fn npy_of_other_writers() {
    let file = |version: u8, dict: &str, data: &[u8]| {
        let mut bytes = [b"\x93NUMPY", &[version, 0][..]].concat();
        match version {
            1 => bytes.extend((dict.len() as u16).to_le_bytes()),
            _ => bytes.extend((dict.len() as u32).to_le_bytes()),
        }
        bytes.extend(dict.as_bytes());
        bytes.extend(data);
        npy::parse(&bytes)
    };
    let dict = |descr: &str, order: &str, shape: &str| {
        format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n")
    };
    let eight = [1u8, 0, 0, 0, 255, 255, 255, 255];
    let i32s = file(1, &dict("'<i4'", "False", "(2,)"), &eight).unwrap();
    assert_eq!((i32s.shape, i32s.data), (vec![2], Data::I32(vec![1, -1])));
    let i64s = file(2, &dict("'<i8'", "True", "(1,)"), &eight).unwrap();
    assert_eq!(i64s.data, Data::I64(vec![i64::from_le_bytes(eight)]));
    let scalar = file(3, &dict("'<f4'", "False", "()"), &eight[..4]).unwrap();
    assert_eq!(scalar.shape, [0usize; 0]);
    for (dict, word) in [
        (dict("'<f8'", "False", "(1,)"), "<f8"),
        (dict("'<i4'", "True", "(1, 2)"), "Fortran"),
        (dict("'<i4'", "False", "(3,)"), "cut short"),
        (dict("'<i4'", "False", "(18446744073709551615, 18446744073709551615)"), "too large"),
        (dict("'<i4'", "False", "(9223372036854775808,)"), "cut short"),
        (dict("'<i4'", "False", "(-2,)"), "whole numbers"),
        (dict("[('x', '<i4')]", "False", "(2,)"), "descr"),
        ("{'descr': '<i4'}".to_string(), "shape"),
    ] {
        let error = file(1, &dict, &eight).unwrap_err();
        assert!(error.contains(word), "{word:?} is not in: {error}");
    }
    assert!(npy::parse(b"").is_err() && npy::parse(b"\x93NUMPY\x01\0\xff\xff{").is_err());
}

/// `np.packbits(rows > 0)`, and for `binary` less 128, as sentence-transformers' quantize_embeddings gives them.
#[test]
fn bits_are_packed_as_numpy_packs_them() {
    let row = [
        0.5,
        -0.1,
        0.0,
        2.0,
        -3.0,
        1e-9,
        f32::MIN_POSITIVE,
        -0.0,
        1.0,
        1.0,
        1.0,
        1.0,
        -1.0,
        -1.0,
        -1.0,
        -1.0,
    ];
    for (dtype, name, want) in
        [(OutputDtype::Ubinary, "U8", [0b1001_0110, 0xf0]), (OutputDtype::Binary, "I8", [0x16, 0x70])]
    {
        let dir = folder();
        for file in ["v.npy", "v.safetensors", "v.jsonl"] {
            let mut output = Output::create(dir.path().join(file).to_str().unwrap(), 16, dtype).unwrap();
            output.write_rows(&[row, row].concat()).unwrap();
            output.finish().unwrap();
        }
        let npy = fs::read(dir.path().join("v.npy")).unwrap();
        let descr = if name == "U8" { "'|u1'" } else { "'|i1'" };
        let header = String::from_utf8_lossy(&npy[..128]).into_owned();
        assert!(header.contains(descr) && header.contains("(2, 2)"), "{header}");
        assert_eq!(npy[128..], [want, want].concat());
        let file = Checkpoint::open_file(&dir.path().join("v.safetensors")).unwrap();
        let tensor = file.get("embeddings").unwrap();
        assert_eq!(
            (format!("{:?}", tensor.dtype).as_str(), tensor.shape, tensor.data),
            (name, vec![2, 2], &[want, want].concat()[..])
        );
        let line = fs::read_to_string(dir.path().join("v.jsonl")).unwrap();
        let shown = if name == "U8" { "[150,240]" } else { "[22,112]" };
        assert!(line.contains(shown), "{line}");
    }
    let dir = folder();
    let odd = Output::create(dir.path().join("v.npy").to_str().unwrap(), 12, OutputDtype::Binary);
    refused(odd.map(|_| ()), &["12 elements", "multiple of 8"]);
}
