//! Files that other tools write and read: round trips, and input that is damaged or hostile. Nothing may panic, and
//! every error names the file and what is wrong with it.

use std::{
    borrow::Cow,
    fs,
    path::{Path, PathBuf},
};

use llm2vec::{
    error::Result,
    format::{
        hf::{self, Checkpoint},
        output::{Output, OutputDtype},
        peft::{self, Adapter},
    },
    pretrained::settings::Settings,
};
use safetensors::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;

mod adapters;
#[cfg(feature = "parquet")]
mod columnar;
mod folders;
mod hostile;
mod tables;
mod texts;
mod vectors;

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// The error's one line, after a check that it has this status and all these words.
#[track_caller]
fn refused<T>(result: Result<T>, words: &[&str]) -> String {
    let error = result.err().expect("an error was wanted");
    let line = error.to_string();
    assert!(!line.contains('\n'), "more than one line: {line:?}");
    for word in words {
        assert!(line.contains(word), "{word:?} is not in: {line}");
    }
    line
}

fn file_names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

struct Raw(Dtype, Vec<usize>, Vec<u8>);

impl safetensors::View for Raw {
    fn dtype(&self) -> Dtype {
        self.0
    }
    fn shape(&self) -> &[usize] {
        &self.1
    }
    fn data(&self) -> Cow<'_, [u8]> {
        (&self.2).into()
    }
    fn data_len(&self) -> usize {
        self.2.len()
    }
}

fn f32_tensor(shape: &[usize], values: &[f32]) -> Raw {
    Raw(Dtype::F32, shape.to_vec(), values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

/// A safetensors file with this header and so many bytes of data.
fn st_bytes(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 1);
    bytes
}

// ---- safetensors and model folders ----

#[test]
fn safetensors_round_trip() {
    let dir = folder();
    let path = dir.path().join("model.safetensors");
    let tensors = vec![
        ("layers.0.w".to_string(), f32_tensor(&[2, 2], &[1.0, -2.0, 3.5, 0.0])),
        ("lm_head.weight".to_string(), Raw(Dtype::BF16, vec![3], vec![0, 1, 2, 3, 4, 5])),
    ];
    hf::write_safetensors(&path, tensors).unwrap();
    assert_eq!(file_names(dir.path()), ["model.safetensors"]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["layers.0.w", "lm_head.weight"]);
    assert_eq!(checkpoint.metadata().get("format").map(String::as_str), Some("pt"));
    assert_eq!(checkpoint.bytes(), 22);
    let long = checkpoint.find("model.layers.0.w").unwrap();
    assert_eq!((long.name, long.dtype, long.shape), ("layers.0.w", Dtype::F32, vec![2, 2]));
    assert_eq!(long.data[4..8], (-2.0f32).to_le_bytes());
    assert_eq!(checkpoint.find("lm_head.weight").unwrap().data, [0, 1, 2, 3, 4, 5]);
    assert!(checkpoint.get("model.layers.0.w").is_none() && checkpoint.find("model.x").is_none());
}

#[cfg(unix)]
#[test]
fn written_files_are_readable_by_others() {
    use std::os::unix::fs::PermissionsExt;
    let dir = folder();
    let mode = |name: &str| fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o777;
    fs::File::create(dir.path().join("plain")).unwrap(); // 0666 & !umask, by the system itself
    hf::write_safetensors(
        &dir.path().join("a.safetensors"),
        vec![("x".to_string(), f32_tensor(&[1], &[1.0]))],
    )
    .unwrap();
    Settings::default().write(dir.path()).unwrap();
    let out = dir.path().join("v.npy");
    Output::create(out.to_str().unwrap(), 2, OutputDtype::F32).unwrap().finish().unwrap();
    for name in ["a.safetensors", "llm2vec_config.json", "v.npy"] {
        assert_eq!(mode(name), mode("plain"), "{name}");
    }
}

#[test]
fn damaged_safetensors_are_refused_by_name() {
    let dir = folder();
    let path = dir.path().join("bad.safetensors");
    let one = r#"{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    let two = |a: &str, b: &str| {
        format!(
            r#"{{"x":{{"dtype":"F32","shape":[2],"data_offsets":{a}}},"y":{{"dtype":"F32","shape":[2],"data_offsets":{b}}}}}"#
        )
    };
    let mut huge = u64::MAX.to_le_bytes().to_vec();
    huge.extend(b"{}");
    let overflow = r#"{"x":{"dtype":"F32","shape":[18446744073709551615,2],"data_offsets":[0,8]}}"#;
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (vec![], "empty"),
        (vec![1, 2, 3], "only 3 bytes"),
        (huge, "100 MB"),
        (st_bytes(one, 8)[..20].to_vec(), "truncated"),
        (st_bytes(one, 7), "truncated"),
        (st_bytes(one, 9), "added to"),
        (st_bytes(&two("[0,8]", "[4,12]"), 12), "overlaps"),
        (st_bytes(&two("[0,8]", "[16,24]"), 24), "hole"),
        (st_bytes(&two("[0,8]", "[8,16]"), 8), "truncated"),
        (st_bytes(&two("[8,0]", "[8,16]"), 8), "range"),
        (st_bytes(r#"{"x":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#, 8), "shape"),
        (st_bytes(r#"{"x":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}}"#, 8), "F99"),
        (st_bytes(overflow, 8), "larger than any memory"),
        (st_bytes("not json", 0), "JSON"),
        (b"\x02\0\0\0\0\0\0\0\xff\xfe".to_vec(), "UTF-8"),
    ];
    for (bytes, word) in cases {
        fs::write(&path, &bytes).unwrap();
        refused(Checkpoint::open_file(&path), &["bad.safetensors", word]);
    }
    refused(Checkpoint::open_file(&dir.path().join("none.safetensors")), &["none.safetensors"]);
    refused(Checkpoint::open_file(dir.path()), &["regular file"]);
}

fn index(dir: &Path, map: Value) {
    fs::write(dir.join("model.safetensors.index.json"), json!({"weight_map": map}).to_string()).unwrap();
}

#[test]
fn shards_are_checked() {
    let dir = folder();
    let write = |name: &str, tensors: &[&str]| {
        let tensors = tensors.iter().map(|t| (t.to_string(), f32_tensor(&[1], &[t.len() as f32]))).collect();
        hf::write_safetensors(&dir.path().join(name), tensors).unwrap();
    };
    refused(Checkpoint::open(dir.path()), &["neither"]);
    fs::write(dir.path().join("pytorch_model.bin"), "x").unwrap();
    refused(Checkpoint::open(dir.path()), &["pytorch_model.bin"]);
    write("one.safetensors", &["a", "bb", "unused"]);
    index(dir.path(), json!({"a": "one.safetensors", "ccc": "two.safetensors"}));
    refused(Checkpoint::open(dir.path()), &["two.safetensors", "missing"]);
    write("two.safetensors", &["ccc"]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "ccc"]);
    assert_eq!(checkpoint.get("ccc").unwrap().data, 3.0f32.to_le_bytes());
    index(dir.path(), json!({"a": "one.safetensors", "bb": "two.safetensors"}));
    refused(Checkpoint::open(dir.path()), &["two.safetensors", "\"bb\""]);
    for name in
        ["../one.safetensors", "/etc/passwd", "..", ".", "", "x/one.safetensors", "x\\one.safetensors"]
    {
        index(dir.path(), json!({"a": name}));
        refused(Checkpoint::open(dir.path()), &["plain file name", "\"a\""]);
    }
    for map in [json!({"a": 3}), json!({}), json!([])] {
        index(dir.path(), map);
        refused(Checkpoint::open(dir.path()), &["index.json"]);
    }
}

#[test]
fn json_errors_name_line_and_column() {
    let dir = folder();
    let path = dir.path().join("config.json");
    fs::write(&path, "{\n  \"a\": x\n}").unwrap();
    refused(hf::read_json(&path), &["config.json", "line 2"]);
    fs::write(&path, "[".repeat(100_000)).unwrap();
    refused(hf::read_json(&path), &["recursion"]);
    fs::File::create(&path).unwrap().set_len(100_000_001).unwrap();
    refused(hf::read_json(&path), &["100000001 bytes"]);
}

#[test]
fn side_files_are_copied_where_present() {
    let (from, to) = (folder(), folder());
    fs::write(from.path().join("tokenizer.json"), "{}").unwrap();
    fs::write(from.path().join("secret.txt"), "x").unwrap();
    hf::copy_side_files(from.path(), to.path()).unwrap();
    assert_eq!(file_names(to.path()), ["tokenizer.json"]);
}

/// Files of the shared workshop, where a checkout has them.
fn shared(path: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared").join(path);
    let found = path.is_dir().then_some(path);
    if found.is_none() {
        println!("skipped: no ../shared");
    }
    found
}

#[test]
fn real_models_and_adapters_open() {
    for entry in shared("data/models").iter().flat_map(|dir| fs::read_dir(dir).unwrap()) {
        let dir = entry.unwrap().path();
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let norm = checkpoint.find("model.norm.weight").unwrap();
        assert_eq!(norm.shape.len(), 1, "{}", dir.display());
        hf::read_json(&dir.join("config.json")).unwrap();
    }
    for entry in shared("golden").iter().flat_map(|dir| fs::read_dir(dir).unwrap()) {
        let dir = entry.unwrap().path().join("lora_init");
        if dir.is_dir() {
            let adapter = Adapter::open(&dir).unwrap();
            assert_eq!(adapter.pairs.len() % 7, 0, "{}", dir.display());
            let copy = folder();
            peft::save(copy.path(), &adapter).unwrap();
            let again = Adapter::open(copy.path()).unwrap();
            assert_eq!((again.config, again.pairs), (adapter.config, adapter.pairs));
        }
    }
}
