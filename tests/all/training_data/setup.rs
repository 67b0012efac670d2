//! Configurations and learning rates.

use super::{folder, refused, write};
use llm2vec::ops::dropout;
use llm2vec::train::blocks::Grouping;
use llm2vec::train::checkpoint::{Losses, State};
use llm2vec::train::config::{FILE, Stage, TrainConfig};
use llm2vec::train::identity::Identity;
use llm2vec::train::mask::{MaskToken, Strategy};
use llm2vec::train::schedule::{Decay, Plan, Schedule, Shape};
use serde_json::{Value, json};
use std::path::Path;

/// The keys and values of the reference's train_configs/{mntp/Mistral,simcse/MetaLlama3,supervised/MetaLlama3}.json.
fn reference(stage: Stage) -> Value {
    let mut common = json!({
        "model_name_or_path": "base", "gradient_accumulation_steps": 1, "do_train": true, "overwrite_output_dir": true,
        "output_dir": "out", "save_steps": 200, "stop_after_n_steps": 1000, "lora_r": 16,
        "gradient_checkpointing": true, "torch_dtype": "bfloat16", "attn_implementation": "flash_attention_2",
    });
    let contrastive = json!({
        "peft_model_name_or_path": "adapter", "bidirectional": true, "pooling_mode": "mean",
        "remove_unused_columns": false, "disable_tqdm": false, "logging_steps": 50, "save_only_model": true, "seed": 42,
    });
    let own = match stage {
        Stage::Mntp => json!({
            "dataset_name": "wikitext", "dataset_config_name": "wikitext-103-raw-v1", "do_eval": true,
            "per_device_train_batch_size": 32, "per_device_eval_batch_size": 32, "max_seq_length": 512,
            "mask_token_type": "blank", "data_collator_type": "all_mask", "mlm_probability": 0.8,
            "evaluation_strategy": "steps", "eval_steps": 100,
        }),
        Stage::Simcse => json!({
            "simcse_dropout": 0.3, "dataset_name": "Wiki1M", "dataset_file_path": "wiki1m.txt", "learning_rate": 3e-5,
            "loss_scale": 20, "per_device_train_batch_size": 128, "max_seq_length": 128,
        }),
        Stage::Supervised => json!({
            "dataset_name": "E5", "dataset_file_path": "echo-data", "learning_rate": 2e-4, "num_train_epochs": 3,
            "warmup_steps": 300, "per_device_train_batch_size": 64, "per_device_eval_batch_size": 64,
            "max_seq_length": 512,
        }),
    };
    let fields = common.as_object_mut().unwrap();
    if stage != Stage::Mntp {
        fields.extend(contrastive.as_object().unwrap().clone());
    }
    fields.extend(own.as_object().unwrap().clone());
    common
}

fn read(json: &Value, stage: Stage) -> llm2vec::error::Result<(TrainConfig, Vec<String>)> {
    TrainConfig::read(&write(&folder(), "run.json", &json.to_string()), stage)
}

#[test]
fn the_references_files_are_read_as_they_are() {
    let (mntp, ignored) = read(&reference(Stage::Mntp), Stage::Mntp).unwrap();
    let mut left = [
        "attn_implementation",
        "dataset_config_name",
        "do_eval",
        "do_train",
        "evaluation_strategy",
        "torch_dtype",
    ];
    left.sort_unstable();
    assert_eq!(ignored, left, "once each");
    let wanted = TrainConfig {
        model_name_or_path: Some("base".into()),
        output_dir: Some("out".into()),
        overwrite_output_dir: true,
        dataset_name: Some("wikitext".into()),
        gradient_checkpointing: true,
        mask_token_type: MaskToken::Blank,
        data_collator_type: Strategy::AllMask,
        mlm_probability: 0.8,
        ..TrainConfig::new(Stage::Mntp)
    };
    assert_eq!(mntp, wanted);
    let (simcse, _) = read(&reference(Stage::Simcse), Stage::Simcse).unwrap();
    assert_eq!(simcse.peft_model_name_or_path, ["adapter"]);
    assert_eq!((simcse.simcse_dropout, simcse.loss_scale, simcse.learning_rate), (0.3, 20.0, 3e-5));
    assert_eq!((simcse.alpha(), simcse.data()), (32.0, Some("wiki1m.txt")));
    let (supervised, _) = read(&reference(Stage::Supervised), Stage::Supervised).unwrap();
    assert_eq!((supervised.loss_scale, supervised.warmup_steps), (50.0, 300));
    assert_eq!((supervised.per_device_train_batch_size, supervised.max_seq_length), (64, 512));
}

#[test]
fn the_papers_defaults() {
    let [mntp, simcse, supervised] = [Stage::Mntp, Stage::Simcse, Stage::Supervised].map(TrainConfig::new);
    for c in [&mntp, &simcse, &supervised] {
        assert!(c.validate().is_ok() && c.bidirectional);
        assert_eq!((c.lora_r, c.alpha(), c.lora_dropout, c.lora_modules.len()), (16, 32.0, 0.05, 7));
        assert_eq!((c.adam_beta1, c.adam_beta2, c.adam_epsilon), (0.9, 0.999, 1e-8));
        assert_eq!((c.weight_decay, c.max_grad_norm, c.num_train_epochs, c.seed), (0.0, 1.0, 3.0, 42));
        assert_eq!((c.stop_after_n_steps, c.decay), (1000, Decay::Epochs));
    }
    let batch =
        |c: &TrainConfig| (c.per_device_train_batch_size, c.max_seq_length, c.learning_rate, c.warmup_steps);
    assert_eq!(batch(&mntp), (32, 512, 5e-5, 0));
    assert_eq!(batch(&simcse), (128, 128, 3e-5, 0));
    assert_eq!(batch(&supervised), (512, 512, 2e-4, 300));
    assert_eq!((mntp.mlm_probability, mntp.data_collator_type), (0.2, Strategy::Bert));
    assert_eq!((simcse.simcse_dropout, supervised.simcse_dropout), (0.3, 0.0));
}

#[test]
fn the_effective_configuration_is_read_back() {
    let dir = folder();
    let more = json!({
        "peft_model_name_or_path": ["mntp", "simcse"], "continue_adapter": true, "line_by_line": true,
        "lora_alpha": 8.5, "lora_modules": ["q_proj", "v_proj"], "decay": "steps", "save_total_limit": 2,
        "learning_rate": null, "experiment_id": null,
    });
    let (config, ignored) = read(&more, Stage::Supervised).unwrap();
    assert!(ignored.is_empty() && config.learning_rate == 2e-4, "null is absent");
    assert_eq!((config.grouping, config.decay), (Grouping::Lines, Decay::Steps));
    config.save(dir.path()).unwrap();
    let (again, ignored) = TrainConfig::read(&dir.path().join(FILE), Stage::Supervised).unwrap();
    assert_eq!((again, ignored.len()), (config, 0));
    refused(
        TrainConfig::read(&dir.path().join(FILE), Stage::Mntp),
        &["stage \"supervised\"", "\"mntp\" is run"],
    );
}

/// Checkpoints of versions that took a name as it was typed go on.
#[test]
fn older_spellings_are_the_same_settings() {
    let [saved, wanted, other] = ["weighted_mean", "weighted-mean", "last"]
        .map(|name| json!({"stage": "simcse", "pooling_mode": name, "lora_r": 8, "template": null}));
    let identity = |configuration: Value| Identity { configuration, paths: json!({}), inputs: json!({}) };
    let state = State {
        step: 1,
        seed: 42,
        masks: dropout::FORMAT,
        position: json!(null),
        configuration: saved,
        inputs: json!({}),
        losses: Losses::default(),
        best: None,
    };
    identity(wanted).check(Path::new("here"), &state.configuration, &state.inputs).unwrap();
    refused(
        identity(other).check(Path::new("here"), &state.configuration, &state.inputs),
        &["pooling_mode \"weighted-mean\" there, \"last\" here"],
    );
    let unknown = json!({"stage": "simcse", "pooling_mode": "weighted_mean", "of_tomorrow": 1});
    assert_eq!(TrainConfig::respelled(&unknown, &json!({})), unknown);
}

/// What Transformers' trainer says in other words, or does by itself.
#[test]
fn a_trainers_keys_are_mapped_or_explained() {
    let taken = |json: Value| read(&json, Stage::Mntp).unwrap();
    let config = taken(json!({"max_steps": 5000, "optim": "adamw_torch_fused", "warmup_steps": 0.1})).0;
    assert_eq!((config.max_steps, config.stop_after_n_steps, config.warmup_ratio), (5000, 5000, 0.1));
    assert_eq!((config.warmup_steps, json!(config.optim)), (0, json!("adamw_torch")));
    let config = taken(json!({"max_steps": 5000, "stop_after_n_steps": 70})).0;
    assert_eq!((config.max_steps, config.stop_after_n_steps), (5000, 70));
    assert_eq!(taken(json!({"max_steps": -1})).0, TrainConfig::new(Stage::Mntp));
    assert!(taken(json!({"activation_checkpointing": true})).0.gradient_checkpointing);

    let (config, ignored) = taken(json!({
        "bf16": true, "torch_compile": false, "report_to": ["wandb"], "deepspeed": "", "neftune_noise_alpha": 0,
        "metric_for_best_model": "eval_loss", "label_smoothing_factor": 0.0, "data_seed": 7,
    }));
    assert_eq!(config, TrainConfig::new(Stage::Mntp));
    let said = llm2vec::train::config::explained(&ignored);
    let groups: Vec<&str> = said.split("; ").map(|group| group.split(" (").next().unwrap()).collect();
    let others = "deepspeed, label_smoothing_factor, metric_for_best_model, neftune_noise_alpha";
    assert_eq!(
        (groups[0], groups[1], groups[2], groups[3]),
        ("bf16, torch_compile", "report_to", "data_seed", others),
        "{said}"
    );
}

/// Our own key goes over the reference's name for one of its values, as a saved run has both.
#[test]
fn line_by_line_is_a_grouping() {
    let grouping = |json: Value| read(&json, Stage::Mntp).unwrap().0.grouping;
    assert_eq!(grouping(json!({"line_by_line": true})), Grouping::Lines);
    assert_eq!(grouping(json!({"line_by_line": true, "grouping": null})), Grouping::Lines);
    assert_eq!(grouping(json!({"line_by_line": true, "grouping": "apart"})), Grouping::Apart);
}

#[test]
fn a_wrong_key_or_value_is_named() {
    let cases = [
        (json!({"mlm_probabilty": 0.2}), vec!["unknown key \"mlm_probabilty\"", "\"mlm_probability\" meant"]),
        (json!({"deepspeed": "x"}), vec!["\"deepspeed\" is \"x\"", "one device trains", "remove it"]),
        (json!({"label_smoothing_factor": 0.1}), vec!["\"label_smoothing_factor\" is 0.1", "no counterpart"]),
        (json!({"optim": "adamw_8bit"}), vec!["\"optim\" is \"adamw_8bit\"", "adamw_torch"]),
        (json!({"lora_r": "x"}), vec!["\"lora_r\" is \"x\"", "invalid type"]),
        (json!({"lora_r": 0}), vec!["\"lora_r\" is 0"]),
        (json!({"lora_r": -1}), vec!["\"lora_r\" is -1"]),
        (json!({"mlm_probability": 1.5}), vec!["\"mlm_probability\" is 1.5"]),
        (json!({"lora_dropout": 1.0}), vec!["\"lora_dropout\" is 1"]),
        (json!({"learning_rate": 0}), vec!["\"learning_rate\" is 0"]),
        (json!({"mask_token_type": "star"}), vec!["\"mask_token_type\" is \"star\"", "blank"]),
        (json!({"data_collator_type": "bert"}), vec!["\"data_collator_type\"", "all_mask"]),
        (json!({"lr_scheduler_type": "polynomial"}), vec!["\"polynomial\"", "linear", "cosine"]),
        (json!({"loss_class": "Triplet"}), vec!["\"Triplet\"", "HardNegativeNLLLoss"]),
        (json!({"lora_modules": ["lm_head"]}), vec!["\"lm_head\"", "q_proj"]),
        (json!({"matryoshka_dims": [8, 0]}), vec!["\"matryoshka_dims\" is [8, 0]", "from 1"]),
        (json!({"matryoshka_dims": [8, 8]}), vec!["8 twice"]),
        (json!({"matryoshka_weights": [-1.0]}), vec!["\"matryoshka_weights\" is -1"]),
        (json!({"lora_modules": []}), vec!["\"lora_modules\" is empty"]),
        (json!({"per_device_train_batch_size": 1}), vec!["negatives", "at least 2"]),
        (json!([]), vec!["object was wanted"]),
    ];
    for (json, words) in cases {
        refused(read(&json, Stage::Simcse), &[&["run.json"], words.as_slice()].concat());
    }
    assert!(
        read(&json!({"per_device_train_batch_size": 1}), Stage::Mntp).is_ok(),
        "masked training needs no others"
    );
}

/// Against PyTorch's AdamW with Transformers' get_linear_schedule_with_warmup, peak 2e-4, to the last digit it prints.
#[test]
fn rates_are_transformers() {
    type Rates = &'static [(usize, f64)];
    let cases: [(usize, usize, Rates); 4] = [
        (0, 23439, &[(0, 0.0002), (1, 0.00019999146721276506), (1000, 0.0001914672127650497)]),
        (
            300,
            1000,
            &[
                (0, 0.0),
                (1, 6.666666666666667e-07),
                (299, 0.00019933333333333334),
                (300, 0.0002),
                (301, 0.00019971428571428573),
                (999, 2.8571428571428575e-07),
                (1000, 0.0),
                (1001, 0.0),
            ],
        ),
        (
            3,
            10,
            &[
                (2, 0.00013333333333333334),
                (3, 0.0002),
                (4, 0.00017142857142857143),
                (9, 2.857142857142857e-05),
            ],
        ),
        (5, 3, &[(0, 0.0), (3, 0.00012), (4, 0.00016)]),
    ];
    for (warmup, total, rates) in cases {
        let schedule = Schedule { peak: 2e-4, warmup, total, steps: total, shape: Shape::Linear };
        for &(step, wanted) in rates {
            let got = schedule.rate(step);
            assert!(
                (got - wanted).abs() <= 1e-15 * 2e-4 + 1e-15 * wanted,
                "{step} of {total}: {got}, not {wanted}"
            );
        }
    }
}

/// Against PyTorch's AdamW under Transformers' `get_scheduler`, peak 2e-4, likewise.
#[test]
fn the_other_shapes_are_transformers_too() {
    type Rates = &'static [(usize, f64)];
    let cases: [(Shape, usize, usize, Rates); 4] = [
        (
            Shape::Cosine,
            3,
            10,
            &[
                (0, 0.0),
                (1, 6.666666666666667e-05),
                (3, 0.0002),
                (4, 0.0001900968867902419),
                (7, 7.774790660436858e-05),
                (9, 9.903113209758096e-06),
                (10, 0.0),
            ],
        ),
        (Shape::Cosine, 0, 5, &[(0, 0.0002), (1, 0.00018090169943749476), (4, 1.9098300562505266e-05)]),
        (Shape::Cosine, 5, 3, &[(0, 0.0), (2, 8e-05)]),
        (
            Shape::ConstantWithWarmup,
            3,
            10,
            &[(0, 0.0), (2, 0.00013333333333333334), (3, 0.0002), (9, 0.0002)],
        ),
    ];
    for (shape, warmup, total, rates) in cases {
        let schedule = Schedule { peak: 2e-4, warmup, total, steps: total, shape };
        for &(step, wanted) in rates {
            let got = schedule.rate(step);
            assert!(
                (got - wanted).abs() <= 1e-19 + 1e-14 * wanted,
                "{shape:?} {step} of {total}: {got}, not {wanted}"
            );
        }
    }
}

#[test]
fn decay_goes_over_the_epochs_or_over_the_steps() {
    let plan = TrainConfig::new(Stage::Simcse).plan(1_000_000usize.div_ceil(128));
    let over_epochs = Schedule::new(3e-5, &plan).unwrap();
    assert_eq!((over_epochs.total, over_epochs.steps, over_epochs.warmup), (23_439, 1000, 0));
    assert!((over_epochs.rate(1000) / 3e-5 - 0.957).abs() < 5e-4);
    let over_steps = Schedule::new(3e-5, &Plan { decay: Decay::Steps, ..plan }).unwrap();
    assert_eq!((over_steps.total, over_steps.rate(1000)), (1000, 0.0));
    // Transformers 5: a rest of an epoch is a step, half epochs count, a ratio is rounded up.
    let plan =
        Plan { batches: 11, accumulation: 4, epochs: 2.3, stop: 99, warmup: 0, warmup_ratio: 0.21, ..plan };
    let schedule = Schedule::new(1.0, &plan).unwrap();
    assert_eq!((schedule.total, schedule.steps, schedule.warmup), (7, 7, 2));
    let few = Schedule::new(1.0, &Plan { batches: 3, accumulation: 200, epochs: 3.0, ..plan }).unwrap();
    assert_eq!(few.steps, 3, "a step an epoch");
    let by_steps = Plan { max_steps: Some(40), warmup_ratio: 0.25, ..plan };
    let schedule = Schedule::new(1.0, &by_steps).unwrap();
    assert_eq!((schedule.total, schedule.steps, schedule.warmup), (40, 40, 10), "in place of the epochs");
    let stopped = Schedule::new(1.0, &Plan { stop: 12, ..by_steps }).unwrap();
    assert_eq!((stopped.total, stopped.steps), (40, 12));
    let constant = Schedule::new(1.0, &Plan { shape: Shape::Constant, ..by_steps }).unwrap();
    assert_eq!((constant.warmup, constant.rate(0), constant.rate(39)), (0, 1.0, 1.0));
    refused(Schedule::new(1.0, &Plan { stop: 0, ..plan }), &["no step to train"]);
}
