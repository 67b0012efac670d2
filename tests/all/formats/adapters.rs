//! LoRA adapters: PEFT's forms, round trips, and every refusal by name.

use std::{collections::BTreeMap, fs, path::Path};

use llm2vec::{
    error::Error,
    format::{
        hf::{self, Checkpoint},
        peft::{self, Adapter, AdapterConfig, Pair},
    },
};
use safetensors::Dtype;
use serde_json::{Value, json};

use super::{Raw, f32_tensor, folder, refused};

pub const Q_KEY: &str = "base_model.model.layers.0.self_attn.q_proj";

pub fn adapter_files(dir: &Path, config: Value, tensors: Vec<(String, Raw)>) {
    let mut all =
        json!({"peft_type": "LORA", "r": 2, "lora_alpha": 8, "bias": "none", "target_modules": "all-linear"});
    for (key, value) in config.as_object().unwrap() {
        all[key] = value.clone();
    }
    fs::write(dir.join("adapter_config.json"), all.to_string()).unwrap();
    hf::write_safetensors(&dir.join("adapter_model.safetensors"), tensors).unwrap();
}

/// A on 3 inputs, B on 4 outputs, of this rank.
pub fn halves(key: &str, rank: usize) -> Vec<(String, Raw)> {
    let values = |n: usize| (0..n).map(|i| i as f32 / 4.0).collect::<Vec<_>>();
    vec![
        (format!("{key}.lora_A.weight"), f32_tensor(&[rank, 3], &values(rank * 3))),
        (format!("{key}.lora_B.weight"), f32_tensor(&[4, rank], &values(4 * rank))),
    ]
}

#[test]
fn adapters_of_all_key_forms_and_types_open() {
    for key in [Q_KEY, "base_model.model.model.layers.0.self_attn.q_proj"] {
        for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16] {
            for suffix in ["weight", "default.weight"] {
                let dir = folder();
                let (width, one) = match dtype {
                    Dtype::BF16 => (2, vec![0x80, 0x3f]),
                    Dtype::F16 => (2, vec![0x00, 0x3c]),
                    _ => (4, 1.0f32.to_le_bytes().to_vec()),
                };
                let ones = |shape: [usize; 2]| {
                    let data = one.repeat(shape[0] * shape[1]);
                    assert_eq!(data.len(), shape[0] * shape[1] * width);
                    Raw(dtype, shape.to_vec(), data)
                };
                let tensors = vec![
                    (format!("{key}.lora_A.{suffix}"), ones([2, 3])),
                    (format!("{key}.lora_B.{suffix}"), ones([4, 2])),
                ];
                adapter_files(dir.path(), json!({"unknown_key": [1]}), tensors);
                let adapter = Adapter::open(dir.path()).unwrap();
                let pair = &adapter.pairs[0];
                assert_eq!(
                    (pair.layer, pair.module.as_str(), pair.rank, pair.inputs, pair.outputs),
                    (0, "q_proj", 2, 3, 4)
                );
                assert_eq!((pair.scale, &pair.a, &pair.b), (4.0, &vec![1.0; 6], &vec![1.0; 8]));
            }
        }
    }
}

#[test]
fn adapter_patterns_follow_peft() {
    let cases = [
        (json!({}), 2, 4.0),
        (json!({"use_rslora": true, "r": 4}), 4, 4.0),
        (json!({"rank_pattern": {"q_proj": 4}}), 4, 2.0),
        (json!({"rank_pattern": {"layers.0.self_attn.q_proj": 4, "layers.1.self_attn.q_proj": 8}}), 4, 2.0),
        (json!({"alpha_pattern": {"self_attn.q_proj": 2.0}}), 2, 1.0),
        (json!({"alpha_pattern": {"^layers.0.self_attn.q_proj": 2.0}}), 2, 1.0),
        (json!({"alpha_pattern": {"proj": 2.0, "_proj": 1.0, "^q_proj": 3.0}}), 2, 4.0),
    ];
    for (config, rank, scale) in cases {
        let dir = folder();
        adapter_files(dir.path(), config.clone(), halves(Q_KEY, rank));
        let adapter = Adapter::open(dir.path()).unwrap();
        assert_eq!((adapter.pairs[0].rank, adapter.pairs[0].scale), (rank, scale), "{config}");
    }
    for pattern in [json!({"q_.*": 1.0}), json!({"q_proj": 1.0, "self_attn.q_proj": 2.0})] {
        let dir = folder();
        adapter_files(dir.path(), json!({"alpha_pattern": pattern}), halves(Q_KEY, 2));
        refused(Adapter::open(dir.path()), &["alpha_pattern"]);
    }
}

#[test]
fn adapter_configurations_we_do_not_run_are_refused_by_name() {
    for (key, value) in [
        ("peft_type", json!("IA3")),
        ("use_dora", json!(true)),
        ("bias", json!("all")),
        ("modules_to_save", json!(["lm_head"])),
        ("fan_in_fan_out", json!(true)),
        ("layer_replication", json!([[0, 1]])),
        ("init_lora_weights", json!("pissa")),
        ("lora_bias", json!(true)),
    ] {
        let dir = folder();
        adapter_files(dir.path(), json!({key: value}), halves(Q_KEY, 2));
        let result = Adapter::open(dir.path());
        assert!(matches!(result, Err(Error::Unsupported(_))), "{key}");
        refused(result, &[key, "adapter_config.json"]);
    }
    for (key, value) in [
        ("r", json!(0)),
        ("r", json!(1e300)),
        ("r", Value::Null),
        ("lora_alpha", json!("8")),
        ("target_modules", json!([1])),
        ("rank_pattern", json!({"q_proj": -1})),
        ("use_rslora", json!(1)),
    ] {
        let dir = folder();
        adapter_files(dir.path(), json!({key: value}), halves(Q_KEY, 2));
        refused(Adapter::open(dir.path()), &[key]);
    }
}

#[test]
fn adapter_tensors_that_do_not_fit_are_refused_by_name() {
    let open = |tensors| {
        let dir = folder();
        adapter_files(dir.path(), json!({}), tensors);
        Adapter::open(dir.path())
    };
    refused(open(vec![]), &["no tensors"]);
    refused(open(halves(Q_KEY, 2).into_iter().take(1).collect()), &["q_proj.lora_A.weight", "to go with it"]);
    refused(open(halves(Q_KEY, 3)), &["q_proj.lora_A.weight", "[3, 3]", "[2, inputs]"]);
    let both =
        halves(Q_KEY, 2).into_iter().chain(halves("base_model.model.model.layers.0.self_attn.q_proj", 2));
    refused(open(both.collect()), &["twice"]);
    for key in [
        "layers.0.self_attn.q_proj",
        "base_model.model.layers.0.mlp.q_proj",
        "base_model.model.layers.x.self_attn.q_proj",
        "base_model.model.layers.99999999999999999999999.self_attn.q_proj",
        "base_model.model.lm_head",
    ] {
        refused(open(halves(key, 2)), &["unexpected", key]);
    }
    let mut tensors = halves(Q_KEY, 2);
    tensors[0].1.2[4..8].copy_from_slice(&f32::NAN.to_le_bytes());
    refused(open(tensors), &["q_proj.lora_A.weight", "element 1"]);
    let mut tensors = halves(Q_KEY, 2);
    tensors[1].1 = Raw(Dtype::I8, vec![4, 2], vec![0; 8]);
    refused(open(tensors), &["q_proj.lora_B.weight", "I8"]);
    let dir = folder();
    refused(Adapter::open(dir.path()), &["adapter_config.json"]);
    fs::write(dir.path().join("adapter_config.json"), r#"{"peft_type":"LORA","r":2,"lora_alpha":4}"#)
        .unwrap();
    refused(Adapter::open(dir.path()), &["adapter_model.safetensors"]);
    fs::write(dir.path().join("adapter_model.bin"), "x").unwrap();
    refused(Adapter::open(dir.path()), &["adapter_model.bin"]);
}

#[test]
fn adapters_round_trip() {
    let dir = folder();
    let config = AdapterConfig {
        r: 2,
        lora_alpha: 3.0,
        use_rslora: false,
        target_modules: vec![],
        rank_pattern: BTreeMap::from([("down_proj".to_string(), 1)]),
        alpha_pattern: BTreeMap::new(),
        base_model_name_or_path: Some("org/base".to_string()),
        lora_dropout: 0.05,
    };
    let pair = |layer: usize, module: &str, rank: usize| Pair {
        layer,
        module: module.to_string(),
        rank,
        scale: 3.0 / rank as f64,
        a: (0..rank * 3).map(|i| i as f32 * 0.1).collect(),
        b: (0..4 * rank).map(|i| -(i as f32)).collect(),
        inputs: 3,
        outputs: 4,
    };
    let pairs = vec![pair(0, "q_proj", 2), pair(0, "down_proj", 1), pair(10, "v_proj", 2)];
    let mut adapter = Adapter { config, dir: dir.path().to_path_buf(), pairs };
    peft::save(dir.path(), &adapter).unwrap();
    let read = Adapter::open(dir.path()).unwrap();
    assert_eq!(read.config.target_modules, ["q_proj", "v_proj", "down_proj"]);
    adapter.config.target_modules = read.config.target_modules.clone();
    assert_eq!(read, adapter);
    let names = Checkpoint::open_file(&dir.path().join("adapter_model.safetensors")).unwrap();
    assert!(names.get("base_model.model.layers.0.mlp.down_proj.lora_B.weight").is_some());
    adapter.pairs[0].scale = 1.0;
    refused(peft::save(dir.path(), &adapter), &["q_proj", "configuration"]);
}
