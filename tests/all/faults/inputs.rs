//! The boundaries where the program reads what others wrote: some real files of each, and the reader.

use super::fuzz::Chance;
use crate::common::{here, models, random_adapter};
use flate2::{Compression, write::GzEncoder};
use llm2vec::eval::{sts, words::reader::Tagged};
use llm2vec::format::hf::{self, Checkpoint as Tensors, Floats};
use llm2vec::format::input::{self, Reading};
use llm2vec::format::peft::{Adapter, AdapterConfig};
use llm2vec::format::{npy, vectors::VectorFile};
use llm2vec::model::config::Config;
use llm2vec::ops::dropout;
use llm2vec::pretrained::{sentence_transformers::Modules, settings::Settings};
use llm2vec::text::tokenizer::Tokenizer;
use llm2vec::train::checkpoint::{Checkpoint, Losses, Moments, State};
use ptx_emulator::{Emulator, Module};
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::path::Path;

/// A kind of file.
pub struct Boundary {
    pub name: &'static str,
    /// Makes what stands beside the file in a folder, and real files, each of which `read` takes.
    pub seeds: fn(&Path) -> Vec<Vec<u8>>,
    /// Reads these bytes as such a file, all of it; whether they were taken.
    pub read: fn(&Path, &[u8], &mut Chance) -> bool,
}

/// Writes the bytes under this name, of which parts are made; the path.
fn put(dir: &Path, name: &str, bytes: &[u8]) -> std::path::PathBuf {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, bytes).unwrap();
    path
}

/// Every text of a file, till one is wrong.
fn texts(dir: &Path, name: &str, bytes: &[u8]) -> bool {
    let path = put(dir, name, bytes);
    let records = input::open(path.to_str().unwrap(), &Reading::default());
    // Some kilobytes may unpack to a thousand million lines.
    records.is_ok_and(|records| records.take(1_000_000).all(|record| record.is_ok()))
}

/// Every byte of every tensor is there.
fn tensors(opened: llm2vec::Result<Tensors>) -> bool {
    opened.is_ok_and(|tensors| {
        let data: Vec<&[u8]> = tensors.names().map(|name| tensors.get(name).unwrap().data).collect();
        let last = data.iter().filter_map(|bytes| bytes.last()).fold(0u64, |sum, b| sum + u64::from(*b));
        std::hint::black_box(last);
        data.iter().map(|bytes| bytes.len() as u64).sum::<u64>() == tensors.bytes()
    })
}

/// Every row of a file of vectors, as an evaluation reads them.
fn rows(path: &Path) -> bool {
    VectorFile::open(path).is_ok_and(|file| {
        let step = (4096 / file.width()).max(1);
        let windows = (0..file.rows()).step_by(step).map(|from| from..(from + step).min(file.rows()));
        windows.map(|rows| file.read(rows).len()).sum::<usize>() == file.rows() * file.width()
    })
}

fn adapter_files(dir: &Path) {
    let small = json!({"model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": 8});
    random_adapter(dir, &Config::parse(&small).unwrap(), 1);
}

fn safetensors(dir: &Path) -> Vec<Vec<u8>> {
    adapter_files(dir);
    let path = dir.join("embeddings.safetensors");
    let rows = Floats { shape: vec![3, 4], values: &[0.5; 12] };
    hf::write_safetensors(&path, vec![("embeddings".into(), rows)]).unwrap();
    vec![fs::read(path).unwrap(), fs::read(dir.join("adapter_model.safetensors")).unwrap()]
}

/// A tokenizer that ships with the repository, with so few of its words that it is read at once.
fn tokenizer(dir: &Path) -> Vec<Vec<u8>> {
    let model = here("tests/models/novel5m");
    fs::copy(model.join("tokenizer_config.json"), dir.join("tokenizer_config.json")).unwrap();
    let mut json: Value = hf::read_json(&model.join("tokenizer.json")).unwrap();
    let vocabulary = json["model"]["vocab"].as_object_mut().unwrap();
    vocabulary.retain(|_, id| id.as_u64().unwrap() < 400);
    let known = vocabulary.clone();
    let merges = json["model"]["merges"].as_array_mut().unwrap();
    merges.retain(|pair| {
        let parts = [0, 1].map(|at| pair[at].as_str().unwrap());
        known.contains_key(&parts.concat()) && parts.iter().all(|part| known.contains_key(*part))
    });
    vec![json.to_string().into_bytes()]
}

fn tokenises(dir: &Path) -> bool {
    Tokenizer::open(dir).is_ok_and(|mut tokenizer| {
        let text = "A heavy rain fell: 日本 \u{301}<bos> 12345\n";
        let read = tokenizer.encode(text, true).is_ok() && tokenizer.encode("", false).is_ok();
        tokenizer.lower_case().is_ok() && tokenizer.encode(text, true).is_ok() && read
    })
}

/// The files of a sentence-transformers folder that are JSON.
const MODULES: [&str; 5] = [
    "modules.json",
    "1_Pooling/config.json",
    "3_Dense/config.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
];

fn module(name: &str) -> Vec<u8> {
    fs::read(here("tests/golden/sentence_transformers/dense-residual").join(name)).unwrap()
}

fn checkpoint(dir: &Path) -> Vec<Vec<u8>> {
    adapter_files(dir);
    let state = State {
        step: 3,
        seed: 1,
        masks: dropout::FORMAT,
        position: json!({"file": 0, "byte": 7}),
        configuration: json!({"lr": 0.1, "lora_dropout": 0.05}),
        inputs: json!({"data": "5 bytes, abc"}),
        losses: Losses::default(),
        best: None,
    };
    let (adapter, settings) = (Adapter::open(dir).unwrap(), Settings::default());
    let moments = Moments { name: "q".into(), shape: vec![2, 2], m: vec![0.5; 4], v: vec![0.5; 4] };
    let checkpoint = Checkpoint { state, adapter, settings, extra: Vec::new(), moments: vec![moments] };
    let saved = checkpoint.save(&dir.join("run"), 1).unwrap();
    let mut state: Value = hf::read_json(&saved.join("trainer_state.json")).unwrap();
    // One of before states had a hash of themselves, so that what is changed is read.
    state.as_object_mut().unwrap().remove("sha256");
    vec![state.to_string().into_bytes()]
}

/// Compiled kernels in parts that are read at once: the head and one or two kernels.
fn kernels() -> Vec<Vec<u8>> {
    let files =
        ["asserts", "basics", "bugs", "cooperative", "gemm", "async_sm90", "warpgroup_sm90", "gemm_sm90"];
    let parts = files.iter().flat_map(|file| {
        let path = here("src/emulator/tests/conformance/ptx").join(file).with_extension("ptx");
        let text = fs::read_to_string(path).unwrap();
        let (head, kernels) = text.split_at(text.find(".visible .entry").unwrap());
        let whole = |kernel: &str| format!("{head}{kernel}").into_bytes();
        let each: Vec<Vec<u8>> = kernels.split_inclusive("\n}\n").map(whole).collect();
        each.into_iter().filter(|part| part.len() < 20_000)
    });
    parts.filter(|part| Module::parse("part.ptx", std::str::from_utf8(part).unwrap()).is_ok()).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn sentences() -> Vec<u8> {
    fs::read(here("tests/texts/sentences.txt")).unwrap()
}

const JSONL: &[u8] = b"{\"text\": \"A heavy rain fell.\", \"id\": 7}\n{\"instruction\": \"Find\", \"text\": \"\\u00e9 \\ud83d\"}\n\
    {\"tokens\": [\"A\", \"rain\"], \"id\": [1, {\"a\": null}]}\n";
const ARRAY: &[u8] =
    b"[{\"text\": \"A heavy rain fell.\", \"id\": 7},\n{\"text\": \"half \\ud83d pair\", \"s\": NaN}]\n";
const CSV: &[u8] = b"id,text,note\r\n1,\"A heavy, heavy\nrain \"\"fell\"\".\",\r\n2,The dog ran.,x\r\n";
const TSV: &[u8] = b"id\ttext\n1\tA heavy rain fell.\n2\tThe dog ran.\n";
const TAGGED: [(&str, &[u8]); 3] = [
    ("a.conll", b"EU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\n-DOCSTART- -X- O O\n\nPeter NNP B-NP B-PER\n"),
    ("a.conllu", b"# text = It fell\n1\tIt\tit\tPRON\tPRP\t_\t2\tnsubj\t_\t_\n2\tfell\tfall\tVERB\tVBD\t_\t0\troot\t_\t_\n"),
    ("a.jsonl", b"{\"tokens\": [\"It\", \"fell\"], \"ner\": [\"O\", \"B-X\"]}\n"),
];

#[cfg(feature = "parquet")]
fn columns() -> Vec<Vec<u8>> {
    use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
    let text = StringArray::from(vec![Some("A heavy rain fell."), Some("The dog ran."), Some("x")]);
    let columns: [(&str, ArrayRef); 2] =
        [("text", std::sync::Arc::new(text)), ("id", std::sync::Arc::new(Int64Array::from(vec![1, 2, 3])))];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    use parquet::basic::{Compression, ZstdLevel};
    let packings = [Compression::UNCOMPRESSED, Compression::SNAPPY, Compression::ZSTD(ZstdLevel::default())];
    let mut files: Vec<Vec<u8>> = packings
        .into_iter()
        .map(|packing| {
            let properties = parquet::file::properties::WriterProperties::builder().set_compression(packing);
            let properties = Some(properties.build());
            let mut writer =
                parquet::arrow::ArrowWriter::try_new(Vec::new(), batch.schema(), properties).unwrap();
            writer.write(&batch).unwrap();
            writer.into_inner().unwrap()
        })
        .collect();
    let mut arrow = arrow_ipc::writer::FileWriter::try_new(Vec::new(), &batch.schema()).unwrap();
    arrow.write(&batch).unwrap();
    files.push(arrow.into_inner().unwrap());
    files
}

pub const BOUNDARIES: &[Boundary] = &[
    Boundary {
        name: "safetensors",
        seeds: safetensors,
        read: |dir, bytes, _| tensors(Tensors::open_file(&put(dir, "model.safetensors", bytes))),
    },
    Boundary {
        name: "shards",
        seeds: |dir| {
            let whole = safetensors(dir).swap_remove(0);
            put(dir, "model-00001-of-00001.safetensors", &whole);
            vec![br#"{"metadata": {"total_size": 48}, "weight_map": {"embeddings": "model-00001-of-00001.safetensors"}}"#.to_vec()]
        },
        read: |dir, bytes, _| {
            put(dir, "model.safetensors.index.json", bytes);
            tensors(Tensors::open(dir))
        },
    },
    Boundary {
        name: "config",
        seeds: |_| models().iter().map(|dir| fs::read(dir.join("config.json")).unwrap()).collect(),
        read: |dir, bytes, _| {
            let json = hf::read_json(&put(dir, "config.json", bytes));
            json.and_then(|json| Config::parse(&json)).is_ok_and(|config| {
                std::hint::black_box(config.projections().len() as u64 + config.parameters());
                true
            })
        },
    },
    Boundary {
        name: "adapter_config",
        seeds: |dir| {
            adapter_files(dir);
            vec![fs::read(dir.join("adapter_config.json")).unwrap()]
        },
        read: |dir, bytes, _| {
            put(dir, "adapter_config.json", bytes);
            Adapter::open(dir).is_ok() && AdapterConfig::read(dir).is_ok()
        },
    },
    Boundary {
        name: "adapter",
        seeds: |dir| vec![safetensors(dir).swap_remove(1)],
        read: |dir, bytes, _| {
            put(dir, "adapter_model.safetensors", bytes);
            Adapter::open(dir).is_ok()
        },
    },
    Boundary {
        name: "tokenizer",
        seeds: tokenizer,
        read: |dir, bytes, _| {
            put(dir, "tokenizer.json", bytes);
            tokenises(dir)
        },
    },
    Boundary {
        name: "tokenizer_config",
        seeds: |dir| {
            put(dir, "tokenizer.json", &tokenizer(dir)[0]);
            vec![fs::read(dir.join("tokenizer_config.json")).unwrap()]
        },
        read: |dir, bytes, _| {
            put(dir, "tokenizer_config.json", bytes);
            tokenises(dir)
        },
    },
    Boundary {
        name: "jsonl",
        seeds: |_| vec![JSONL.to_vec()],
        read: |dir, bytes, _| texts(dir, "a.jsonl", bytes),
    },
    Boundary {
        name: "json",
        seeds: |_| vec![ARRAY.to_vec(), JSONL.to_vec()],
        read: |dir, bytes, _| texts(dir, "a.json", bytes),
    },
    Boundary { name: "csv", seeds: |_| vec![CSV.to_vec()], read: |dir, bytes, _| texts(dir, "a.csv", bytes) },
    Boundary { name: "tsv", seeds: |_| vec![TSV.to_vec()], read: |dir, bytes, _| texts(dir, "a.tsv", bytes) },
    Boundary {
        name: "text",
        seeds: |_| vec![sentences(), JSONL.to_vec(), ARRAY.to_vec()],
        read: |dir, bytes, _| texts(dir, "a", bytes),
    },
    Boundary {
        name: "packed",
        seeds: |_| {
            let fast = ruzstd::encoding::CompressionLevel::Fastest;
            let zstd = |bytes: &[u8]| ruzstd::encoding::compress_to_vec(bytes, fast);
            vec![gzip(&sentences()), gzip(JSONL), zstd(&sentences()), zstd(JSONL)]
        },
        read: |dir, bytes, _| texts(dir, "a", bytes),
    },
    Boundary {
        name: "npy",
        seeds: |_| {
            let array = |descr, bytes: usize| [npy::header(descr, &[2, 3]), vec![0; 6 * bytes]].concat();
            vec![array("<f4", 4), array("<f2", 2)]
        },
        read: |dir, bytes, _| {
            let path = put(dir, "v.npy", bytes);
            npy::read(&path).is_ok_and(|array| !array.to_f32().is_empty()) & rows(&path)
        },
    },
    Boundary {
        name: "vectors",
        seeds: |dir| vec![safetensors(dir).swap_remove(0)],
        read: |dir, bytes, _| rows(&put(dir, "v.safetensors", bytes)),
    },
    Boundary {
        name: "modules",
        seeds: |dir| {
            for file in MODULES.iter().chain(&["2_Normalize/config.json", "3_Dense/model.safetensors"]) {
                put(dir, file, &module(file));
            }
            MODULES.map(module).to_vec()
        },
        read: |dir, bytes, chance| {
            let name = chance.one(&MODULES);
            // A seed has its own name.
            let name = MODULES.into_iter().find(|name| module(name) == bytes).unwrap_or(name);
            put(dir, name, bytes);
            let read = Modules::read(dir);
            put(dir, name, &module(name));
            read.is_ok_and(|modules| modules.is_none_or(|modules| modules.prompt(None).is_ok()))
        },
    },
    Boundary {
        name: "settings",
        seeds: |_| {
            let merged = here("tests/golden/merged/mean");
            vec![fs::read(merged.join("llm2vec_config.json")).unwrap()]
        },
        read: |dir, bytes, chance| {
            put(dir, chance.one(&["llm2vec_config.json", "llm2vec_encoder.json"]), bytes);
            Settings::read(dir).is_ok()
        },
    },
    Boundary {
        name: "tagged",
        seeds: |_| TAGGED.iter().map(|(_, bytes)| bytes.to_vec()).collect(),
        read: |dir, bytes, chance| {
            let own = TAGGED.iter().find(|(_, seed)| *seed == bytes);
            let (name, _) = own.copied().unwrap_or_else(|| chance.one(&TAGGED));
            let label = if name == "a.jsonl" { "ner" } else { "4" };
            Tagged::read(&put(dir, name, bytes), Some(label)).is_ok()
        },
    },
    Boundary {
        name: "pairs",
        seeds: |_| vec![fs::read(here("tests/texts/sts.tsv")).unwrap()],
        read: |dir, bytes, _| sts::read(&put(dir, "a.tsv", bytes)).is_ok(),
    },
    Boundary {
        name: "checkpoint",
        seeds: checkpoint,
        read: |dir, bytes, _| {
            put(dir, "run/checkpoint-3/trainer_state.json", bytes);
            Checkpoint::read(&dir.join("run/checkpoint-3")).is_ok()
        },
    },
    Boundary {
        name: "ptx",
        seeds: |_| kernels(),
        read: |_, bytes, _| {
            let text = String::from_utf8_lossy(bytes);
            Module::parse("fuzzed.ptx", &text).is_ok_and(|module| Emulator::new(module).is_ok())
        },
    },
    #[cfg(feature = "parquet")]
    Boundary { name: "parquet", seeds: |_| columns(), read: |dir, bytes, _| texts(dir, "a", bytes) },
];
