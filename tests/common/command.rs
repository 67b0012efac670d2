//! The real binary, and what it is run on: shared by the tests of its commands.
#![allow(dead_code)] // each test file uses its own part

use crate::common::{self, random_adapter};
use llm2vec::format::{hf, npy};
use llm2vec::model::config::Config;
use llm2vec::rng::normal;
use safetensors::Dtype;
use serde_json::{Value, json};
use std::borrow::Cow;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;
use tempfile::TempDir;

/// The program of this build, or of the pack that `LLM2VEC_ROOT` names.
pub fn binary() -> PathBuf {
    match std::env::var_os("LLM2VEC_ROOT") {
        Some(root) => Path::new(&root).join("bin/llm2vec"),
        None => env!("CARGO_BIN_EXE_llm2vec").into(),
    }
}

/// The command, free of the caller's own settings.
pub fn llm2vec(args: &[&str]) -> Command {
    let mut command = Command::new(binary());
    let ours = |name: &str| name.starts_with("LLM2VEC_") || name.starts_with("HF_");
    std::env::vars().filter(|(name, _)| ours(name)).for_each(|(name, _)| {
        command.env_remove(name);
    });
    // What is compared with the CPU's numbers runs there, whatever GPU answers.
    command.env("LLM2VEC_DEVICE", "cpu").env_remove("RUST_BACKTRACE").args(args).stdin(Stdio::null());
    command
}

/// Compiles a library of `tests/device/driver` that stands in for NVIDIA's; says where there is no C compiler.
pub fn compiled(dir: &Path, library: &str, source: &str, flags: &[&str]) -> bool {
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-w", "-o"]).arg(dir.join(library)).args(flags);
    let made = compiler.arg(common::here("tests/device/driver").join(source)).status();
    match made {
        Ok(status) => assert!(status.success(), "{source} does not compile"),
        Err(_) => println!("skipped: no C compiler"),
    }
    made.is_ok()
}

/// Runs a command with these bytes on its standard input.
pub fn fed(mut command: Command, input: &[u8]) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|s| {
        // A program that has found its error need not read to the end.
        s.spawn(move || stdin.write_all(input));
        child.wait_with_output().unwrap()
    })
}

/// Runs what must succeed; returns stdout.
#[track_caller]
pub fn good(mut command: Command) -> String {
    passed(command.output().unwrap())
}

#[track_caller]
pub fn passed(output: Output) -> String {
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(!stderr.contains("error"), "{stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// Checks an error: this status, one `error:` line with all these words, no panic, and nothing on stdout.
#[track_caller]
pub fn failed(output: Output, status: i32, words: &[&str]) {
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(status), "{stderr}");
    let errors: Vec<&str> = stderr.lines().filter(|l| l.starts_with("error:")).collect();
    assert!(errors.len() == 1 && !stderr.contains("panicked"), "one error line was wanted: {stderr}");
    // clap goes on with possible values and a hint; an error of ours is the last line.
    assert!(status == 2 || stderr.lines().last() == Some(errors[0]), "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "{word:?} is not in: {stderr}");
    }
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
}

pub fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

pub fn str(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Sentences that ship with the repository.
pub fn prose() -> &'static str {
    static PATH: LazyLock<PathBuf> = LazyLock::new(|| common::here("tests/texts/sentences.txt"));
    str(&PATH)
}

/// Everything in a folder, temporary names included.
pub fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = entries.collect();
    names.sort();
    names
}

pub fn rows(path: &Path) -> Vec<f32> {
    npy::read(path).unwrap().to_f32()
}

/// The largest difference over the largest value.
pub fn off(a: &[f32], b: &[f32]) -> f64 {
    let wide = |x: &[f32]| x.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
    common::relative(&wide(a), &wide(b))
}

/// `encode` with these arguments more, to an .npy file of its own; its rows.
#[track_caller]
pub fn vectors(args: &[&str]) -> Vec<f32> {
    let dir = folder();
    let out = dir.path().join("out.npy");
    good(llm2vec(&[&["encode", "-o", str(&out)], args].concat()));
    rows(&out)
}

// ---- a small random model with a real tokenizer, to be damaged ----

#[derive(Clone)]
pub struct Raw(pub Dtype, pub Vec<usize>, pub Vec<u8>);

impl safetensors::View for &Raw {
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

impl Raw {
    pub fn random(shape: &[usize], seed: u64) -> Raw {
        let scale = (shape[shape.len() - 1] as f64).powf(-0.5);
        let values = normal(seed, shape.iter().product());
        Raw(
            Dtype::F32,
            shape.into(),
            values.iter().flat_map(|v| ((v * scale) as f32).to_le_bytes()).collect(),
        )
    }

    pub fn of_value(shape: &[usize], value: f32) -> Raw {
        Raw(Dtype::F32, shape.into(), value.to_le_bytes().repeat(shape.iter().product()))
    }
}

pub struct Tiny {
    pub dir: TempDir,
    pub config: Value,
    pub tensors: Vec<(String, Raw)>,
}

impl Tiny {
    /// Two layers of width 32, f32, tied, with the tokenizer of novel5m.
    pub fn new() -> Tiny {
        Tiny::wide(32)
    }

    /// Likewise, four heads over this width; from 64 on, a multiple of 64, a GPU takes it.
    pub fn wide(c: usize) -> Tiny {
        let config = json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": c,
            "intermediate_size": c + c / 2, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "vocab_size": 4096, "tie_word_embeddings": true});
        let parsed = Config::parse(&config).unwrap();
        let mut tensors = vec![
            ("model.embed_tokens.weight".to_string(), Raw::random(&[4096, c], 1)),
            ("model.norm.weight".to_string(), Raw::of_value(&[c], 1.0)),
        ];
        for layer in 0..parsed.layers {
            let name = |rest: String| format!("model.layers.{layer}.{rest}.weight");
            for norm in ["input_layernorm", "post_attention_layernorm"] {
                tensors.push((name(norm.into()), Raw::of_value(&[c], 1.0)));
            }
            for p in parsed.projections() {
                let seed = 2 + tensors.len() as u64;
                tensors
                    .push((name(format!("{}.{}", p.group, p.module)), Raw::random(&[p.rows, p.cols], seed)));
            }
        }
        let tiny = Tiny { dir: folder(), config, tensors };
        tiny.write();
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            fs::copy(common::novel5m().join(file), tiny.file(file)).unwrap();
        }
        tiny
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn path(&self) -> &str {
        str(self.dir.path())
    }

    pub fn write(&self) {
        fs::write(self.file("config.json"), self.config.to_string()).unwrap();
        let tensors = self.tensors.iter().map(|(name, t)| (name.clone(), t)).collect();
        hf::write_safetensors(&self.file("model.safetensors"), tensors).unwrap();
    }

    pub fn tensor(&mut self, name: &str) -> &mut Raw {
        &mut self.tensors.iter_mut().find(|(n, _)| n == name).unwrap().1
    }

    pub fn adapter(&self, seed: u64) -> TempDir {
        let dir = folder();
        random_adapter(dir.path(), &Config::parse(&self.config).unwrap(), seed);
        dir
    }

    /// `encode` refuses the model with these words, before or after it has started its output, and leaves nothing.
    #[track_caller]
    pub fn refused(&self, words: &[&str]) {
        let out = folder();
        let npy = out.path().join("v.npy");
        let run = llm2vec(&["encode", "-m", self.path(), "-i", prose(), "-o", str(&npy)]).output();
        failed(run.unwrap(), 1, words);
        assert!(names(out.path()).is_empty(), "{:?}", names(out.path()));
    }
}
