//! Random and mutated files: whatever the bytes, the answer is a value or an error, never a panic.

use std::fs;

use llm2vec::format::{
    hf::Checkpoint,
    input::{self, Format, Reading, Records},
    npy,
    peft::Adapter,
};
use llm2vec::pretrained::{names, sentence_transformers::Modules, settings::Settings};
use proptest::prelude::*;

use super::{
    adapters::{Q_KEY, adapter_files, halves},
    folder, st_bytes,
};

/// `bytes` with some bytes replaced and the end cut off.
fn mutated(bytes: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let len = bytes.len();
    (proptest::collection::vec((0..len, any::<u8>()), 0..6), 0..=len).prop_map(move |(changes, keep)| {
        let mut bytes = bytes.clone();
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        // Half of the time whole, so that the changes are reached.
        bytes.truncate(if keep % 2 == 0 { len } else { keep });
        bytes
    })
}

fn two_tensors() -> Vec<u8> {
    let header = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},"b":{"dtype":"BF16","shape":[3],"data_offsets":[8,14]}}"#;
    st_bytes(header, 14)
}

/// One tensor with any numbers where a writer puts sizes.
fn any_header() -> impl Strategy<Value = Vec<u8>> {
    let size = || prop_oneof![0u64..20, Just(u64::MAX), Just(u64::MAX - 7), Just(1 << 61), any::<u64>()];
    let tensor = ("[ab]", "(F32|BF16|U8|F4|I64)", proptest::collection::vec(size(), 0..3), size(), size());
    (proptest::collection::vec(tensor, 0..4), 0usize..40).prop_map(|(tensors, data)| {
        let entries: Vec<String> = tensors
            .iter()
            .map(|(n, d, shape, from, to)| {
                format!(r#""{n}":{{"dtype":"{d}","shape":{shape:?},"data_offsets":[{from},{to}]}}"#)
            })
            .collect();
        st_bytes(&format!("{{{}}}", entries.join(",")), data)
    })
}

fn any_json() -> impl Strategy<Value = String> {
    let key = prop_oneof![
        Just("r"),
        Just("lora_alpha"),
        Just("peft_type"),
        Just("bias"),
        Just("rank_pattern"),
        Just("alpha_pattern"),
        Just("target_modules"),
        Just("max_length"),
        Just("pooling_mode"),
        Just("pooling_mode_mean_tokens"),
        Just("weight_map"),
        Just("text"),
        Just("instruction")
    ];
    let value = prop_oneof![
        Just("null"),
        Just("true"),
        Just("-1"),
        Just("1e400"),
        Just("2"),
        Just("18446744073709551616"),
        Just("\"LORA\""),
        Just("\"none\""),
        Just("[]"),
        Just("[[1]]"),
        Just("{\"q_proj\":2}"),
        Just("{\"\":1}"),
        Just("\"\\ud800\""),
        Just("\"é\"")
    ];
    proptest::collection::vec((key, value), 0..6).prop_map(|entries| {
        let entries: Vec<String> = entries.iter().map(|(k, v)| format!("\"{k}\":{v}")).collect();
        format!("{{{}}}", entries.join(","))
    })
}

fn open(bytes: &[u8]) {
    let dir = folder();
    let path = dir.path().join("model.safetensors");
    fs::write(&path, bytes).unwrap();
    match Checkpoint::open(dir.path()) {
        Ok(checkpoint) => {
            let names: Vec<&str> = checkpoint.names().collect();
            let sum: usize = names.iter().map(|n| checkpoint.get(n).unwrap().data.len()).sum();
            assert_eq!(sum as u64, checkpoint.bytes());
        }
        Err(error) => assert!(!error.to_string().contains('\n')),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn safetensors_headers(bytes in prop_oneof![mutated(two_tensors()), any_header(), any::<Vec<u8>>()]) {
        open(&bytes);
    }

    #[test]
    fn configurations(text in any_json(), cut in any::<bool>()) {
        let dir = folder();
        adapter_files(dir.path(), serde_json::json!({}), halves(Q_KEY, 2));
        fs::create_dir(dir.path().join("1_Pooling")).unwrap();
        let text = if cut { &text[..text.len() - 1] } else { &text };
        let files = [
            "adapter_config.json", "llm2vec_config.json", "llm2vec_encoder.json", "modules.json", "1_Pooling/config.json",
            "sentence_bert_config.json", "config_sentence_transformers.json", "model.safetensors.index.json",
        ];
        for name in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let _ = Adapter::open(dir.path());
        let _ = Settings::read(dir.path());
        let _ = Modules::read(dir.path());
        let two = r#"[{"type": "sentence_transformers.models.Transformer", "path": ""},
            {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]"#;
        fs::write(dir.path().join("modules.json"), two).unwrap();
        let _ = Modules::read(dir.path());
        let _ = Checkpoint::open(dir.path());
        let _ = names::locate(text);
    }

    #[test]
    fn jsonl_lines(text in prop_oneof![any_json(), ".*"], bytes in any::<Vec<u8>>()) {
        for source in [text.into_bytes(), bytes] {
            for format in [Format::Text, Format::Jsonl, Format::Json, Format::Csv, Format::Tsv] {
                for record in Records::from_reader("x", format, std::io::Cursor::new(source.clone())) {
                    if let Err(error) = record {
                        prop_assert!(!error.to_string().contains('\n'));
                    }
                }
            }
        }
    }

    #[test]
    fn npy_headers(bytes in prop_oneof![
        mutated([npy::header("<f4", &[2, 3]), vec![0; 24]].concat()),
        ("[-(),0-9 ]{0,12}", "[<|=>][fi][1248]").prop_map(|(shape, descr)| {
            let dict = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}");
            [b"\x93NUMPY\x01\0", &(dict.len() as u16).to_le_bytes()[..], dict.as_bytes(), &[0; 8]].concat()
        }),
    ]) {
        let _ = npy::parse(&bytes);
    }

    #[test]
    fn compressed_files(bytes in prop_oneof![
        mutated(ruzstd::encoding::compress_to_vec(&b"some text\nsome more text\n"[..], ruzstd::encoding::CompressionLevel::Fastest)),
        any::<Vec<u8>>(),
    ]) {
        let dir = folder();
        for name in ["a.zst", "a.gz", "a.json", "a.csv", "a.parquet", "a.arrow", "a"] {
            let path = dir.path().join(name);
            fs::write(&path, &bytes).unwrap();
            let _ = input::open(path.to_str().unwrap(), &Reading::default()).map(|records| records.count());
        }
    }
}
