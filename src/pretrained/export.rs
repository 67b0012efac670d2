//! A folder that others open to the same vectors: Transformers (from 5.2), sentence-transformers (from 5.4), the
//! reference's `LLM2Vec.from_pretrained` and our own `encode`. All but the weights, which `merge` streams.

use crate::error::{Error, Message, Result, Setting, message};
use crate::format::{atomic, hf, hf::Floats};
use crate::model::config::Attention;
use crate::pretrained::open::Setup;
use crate::pretrained::pooling::PoolingMode;
use crate::pretrained::sentence_transformers::{self as st, Activation, Dense, Residual, Step};
use crate::pretrained::settings::Settings;
use serde_json::{Map, Value, json};
use std::path::Path;

/// Writes configuration, tokenizer, settings, modules and model card of `setup` into `to`. Gives lines to show: where
/// the folder's vectors differ from those that `setup` gives.
pub fn write(setup: &Setup, to: &Path) -> Result<Vec<Message>> {
    hf::copy_side_files(&setup.dir, to)?;
    atomic::write_json(&to.join("config.json"), &config(setup))?;
    if setup.pooling == PoolingMode::Eos {
        append_eos(setup, to)?;
    }
    settings(setup).write(to)?;
    write_modules(setup, to)?;
    atomic::write(&to.join("README.md"), card(setup).as_bytes())?;
    differences(setup)
}

/// What the folder records: every token is pooled and one length holds, since sentence-transformers has no other form.
fn settings(setup: &Setup) -> Settings {
    let max_length = setup.limits.max_length;
    Settings { skip_instruction: Some(false), doc_max_length: Some(max_length), ..setup.settings() }
}

fn differences(setup: &Setup) -> Result<Vec<Message>> {
    let (mut lines, limits) = (Vec::new(), setup.limits);
    // The last token is the text's own where nothing stands behind it.
    let closed = setup.prompter.tokenizer().encode("a", true)?.special.last() == Some(&true);
    let same_token = match setup.pooling {
        PoolingMode::Eos | PoolingMode::Bos | PoolingMode::First => true,
        PoolingMode::Last => !closed && setup.template == "none",
        PoolingMode::Mean | PoolingMode::WeightedMean => false,
    };
    if !setup.pool_all && !same_token {
        let what = "note: sentence-transformers pools every token, BOS and instruction too, and so does this folder: its \
                    vectors are those of ";
        lines.push(message![what, Setting::PoolOver, " all and differ from those before"]);
    }
    if limits.doc_max_length < limits.max_length {
        let what = format!(
            "note: sentence-transformers has one limit, so a text of over {} tokens is cut at {} with all around it, and \
             has another vector",
            limits.doc_max_length, limits.max_length
        );
        lines.push(what.into());
    }
    if setup.template != "none" {
        let what = format!(
            "note: sentence-transformers has no form for the template {}; llm2vec puts it around every text of this \
             folder, the reference by the model's name, sentence-transformers not",
            setup.template
        );
        lines.push(what.into());
    }
    Ok(lines)
}

/// The model's `config.json` with the attention spelled out for everybody who reads it.
///
/// `is_causal` is Transformers' (5.2 and later) and so sentence-transformers', vLLM's and llama.cpp's key,
/// `use_bidirectional_attention` text-embeddings-inference's. A window would narrow full attention there.
fn config(setup: &Setup) -> Value {
    let mut config = setup.stack.config.clone();
    let Some(keys) = config.as_object_mut() else { return config };
    match setup.attention {
        Attention::Causal => {
            keys.remove("is_causal");
            keys.remove("use_bidirectional_attention");
        }
        Attention::Full | Attention::Window => {
            keys.insert("is_causal".into(), json!(false));
            keys.insert("use_bidirectional_attention".into(), json!(true));
        }
    }
    if setup.attention == Attention::Full {
        let mistral = keys.get("model_type").is_some_and(|t| t == "mistral");
        if mistral || keys.contains_key("sliding_window") {
            keys.insert("sliding_window".into(), Value::Null);
        }
        if keys.contains_key("use_sliding_window") {
            keys.insert("use_sliding_window".into(), json!(false));
        }
        if let Some(Value::Array(types)) = keys.get_mut("layer_types") {
            types.fill(json!("full_attention"));
        }
    }
    if let Some(name) = hub_name(setup) {
        // The reference chooses its template by this.
        keys.insert("_name_or_path".into(), json!(name));
    }
    config
}

/// The hub's name of the model, if it was given by one.
fn hub_name(setup: &Setup) -> Option<&str> {
    let stack = &setup.stack;
    [&stack.base, &stack.asked].into_iter().find(|at| at.hub).map(|at| at.name.as_str())
}

/// Lets the tokenizer itself append the EOS that is pooled: the template of its post-processor gets one more token.
fn append_eos(setup: &Setup, to: &Path) -> Result<()> {
    let path = to.join("tokenizer.json");
    let mut json = hf::read_json(&path)?;
    let tokenizer = setup.prompter.tokenizer();
    let Some((id, eos)) = tokenizer.eos_id().and_then(|id| Some((id, tokenizer.token(id)?))) else {
        return Err(Error::file(path, "has no EOS token"));
    };
    let piece = |kind: usize| json!({"SpecialToken": {"id": eos, "type_id": kind}});
    let sequence = |name: &str, kind: usize| json!({"Sequence": {"id": name, "type_id": kind}});
    let empty = json!({
        "type": "TemplateProcessing", "single": [sequence("A", 0)], "pair": [sequence("A", 0), sequence("B", 1)],
        "special_tokens": {},
    });
    let post = &mut json["post_processor"];
    if post.is_null() {
        *post = empty;
    } else if post["type"] == "Sequence" {
        if let Some(list) = post["processors"].as_array_mut().filter(|l| l.iter().all(|p| !is_template(p))) {
            list.push(empty);
        }
    } else if !is_template(post) {
        *post = json!({"type": "Sequence", "processors": [post.take(), empty]});
    }
    let template = match is_template(post) {
        true => Some(post),
        false => post["processors"].as_array_mut().and_then(|l| l.iter_mut().rev().find(|p| is_template(p))),
    };
    let Some(template) = template else {
        return Err(Error::file(path, "its post-processor has no place for an EOS"));
    };
    for (form, kind) in [("single", 0), ("pair", 1)] {
        let pieces = template[form].as_array_mut();
        let pieces =
            pieces.ok_or_else(|| Error::file(&path, format!("its post-processor has no {form:?}")))?;
        if pieces.last().is_none_or(|p| p["SpecialToken"]["id"] != json!(eos)) {
            pieces.push(piece(kind));
        }
    }
    template["special_tokens"][&eos] = json!({"id": eos, "ids": [id], "tokens": [eos]});
    atomic::write_json(&path, &json)?;

    // Transformers 4 makes the post-processor of some classes anew, by this key.
    let path = to.join("tokenizer_config.json");
    let mut names = hf::read_json(&path)?;
    names["add_eos_token"] = json!(true);
    atomic::write_json(&path, &names)
}

fn is_template(processor: &Value) -> bool {
    processor["type"] == "TemplateProcessing"
}

/// `modules.json` and what it leads to.
fn write_modules(setup: &Setup, to: &Path) -> Result<()> {
    let mut modules = Vec::new();
    let mut module = |class: &str, name: &str| {
        let idx = modules.len();
        let path = if idx == 0 { String::new() } else { format!("{idx}_{name}") };
        modules.push(json!({"idx": idx, "name": idx.to_string(), "path": path, "type": format!("sentence_transformers.{class}.{name}")}));
        to.join(path)
    };
    module("base.modules.transformer", "Transformer");
    let folder = module("sentence_transformer.modules.pooling", "Pooling");
    write_config(&folder, &pooling(setup))?;
    let normalize = setup.normalize.then_some(&Step::Normalize);
    let mut dimensions = None;
    for step in setup.steps.iter().chain(normalize) {
        match step {
            Step::Normalize => {
                let folder = module("base.modules.normalize", "Normalize");
                write_config(&folder, &json!({}))?;
            }
            Step::Dense(dense) => write_dense(&module("base.modules.dense", "Dense"), dense)?,
            Step::Cut(most) => dimensions = Some(*most),
        }
    }
    atomic::write_json(&to.join(st::MODULES), &modules)?;

    let max_length = setup.limits.max_length;
    let lower_case = setup.stack.modules.as_ref().is_some_and(|m| m.lower_case);
    let transformer = json!({"max_seq_length": max_length, "do_lower_case": lower_case});
    atomic::write_json(&to.join(st::TRANSFORMER), &transformer)?;

    let source = setup.stack.modules.as_ref();
    let mut prompts: Map<String, Value> =
        [("query", ""), ("document", "")].map(|(k, v)| (k.into(), json!(v))).into_iter().collect();
    prompts
        .extend(source.into_iter().flat_map(|m| &m.prompts).map(|(name, text)| (name.clone(), json!(text))));
    let mut config = json!({
        "model_type": "SentenceTransformer",
        "prompts": prompts,
        "default_prompt_name": source.and_then(|m| m.default_prompt.clone()),
        "similarity_fn_name": source.and_then(|m| m.similarity.clone()).unwrap_or("cosine".into()),
    });
    if let Some(dimensions) = dimensions {
        config["truncate_dim"] = json!(dimensions);
    }
    atomic::write_json(&to.join(st::CONFIG), &config)
}

/// Both forms: sentence-transformers takes the name, text-embeddings-inference and vLLM the switches.
fn pooling(setup: &Setup) -> Value {
    let mode = setup.pooling.sentence_transformers_name();
    let mut keys = Map::new();
    keys.insert("embedding_dimension".into(), json!(setup.config.width));
    keys.insert("pooling_mode".into(), json!(mode));
    keys.extend(st::SWITCHES.iter().map(|(switch, name)| (switch.to_string(), json!(*name == mode))));
    let include = setup.stack.modules.as_ref().is_none_or(|m| m.include_prompt);
    keys.insert("include_prompt".into(), json!(include));
    Value::Object(keys)
}

fn write_dense(folder: &Path, dense: &Dense) -> Result<()> {
    let activation = match dense.activation {
        Activation::Identity => "linear.Identity",
        Activation::Tanh => "activation.Tanh",
        Activation::Relu => "activation.ReLU",
        Activation::Sigmoid => "activation.Sigmoid",
        Activation::Silu => "activation.SiLU",
    };
    let mut config = json!({
        "in_features": dense.inputs, "out_features": dense.outputs, "bias": dense.bias.is_some(),
        "activation_function": format!("torch.nn.modules.{activation}"),
        "module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding",
    });
    if !matches!(dense.residual, Residual::None) {
        config["use_residual"] = json!(true);
    }
    write_config(folder, &config)?;
    let matrix = |values| Floats { shape: vec![dense.outputs, dense.inputs], values };
    let mut tensors = vec![("linear.weight".to_string(), matrix(&dense.weight))];
    if let Some(bias) = &dense.bias {
        tensors.push(("linear.bias".into(), Floats { shape: vec![dense.outputs], values: bias }));
    }
    if let Residual::Map(map) = &dense.residual {
        tensors.push(("residual.weight".into(), matrix(map)));
    }
    hf::write_safetensors(&folder.join("model.safetensors"), tensors)
}

fn write_config(folder: &Path, config: &Value) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    atomic::write_json(&folder.join("config.json"), config)
}

/// The model card: what this is, who opens it and how.
fn card(setup: &Setup) -> String {
    let base = hub_name(setup).map_or(String::new(), |name| format!("base_model: {name}\n"));
    let name = hub_name(setup).map_or_else(|| setup.stack.base.stem(), str::to_string);
    let adapters = match setup.files.chain.as_slice() {
        [] => "No adapter has been merged into it.".to_string(),
        links => {
            let names: Vec<_> = links.iter().map(|l| format!("`{}` ({:.8})", l.name, l.sha256)).collect();
            format!("Merged into it, in this order: {}.", names.join(", "))
        }
    };
    let (attention, since) = match setup.attention {
        Attention::Causal => ("causal attention, as it was pre-trained", ""),
        Attention::Full => ("full (bidirectional) attention", CARD_SINCE),
        Attention::Window => ("bidirectional attention within its window", CARD_SINCE),
    };
    let unit = if setup.normalize { ", scaled to unit length" } else { "" };
    let dimensions = setup.dimensions();
    let pooling = match setup.pooling {
        PoolingMode::Mean => "the mean of all tokens' states",
        PoolingMode::WeightedMean => "the mean of all tokens' states with weights 1, 2, …",
        PoolingMode::Last => "the last token's state",
        PoolingMode::Eos => "the state of the EOS token, which the tokenizer appends",
        PoolingMode::Bos | PoolingMode::First => "the first token's state",
    };
    format!(
        "---\nlibrary_name: sentence-transformers\npipeline_tag: sentence-similarity\ntags:\n- sentence-transformers\n- \
         feature-extraction\n- llm2vec\n{base}---\n\n# {name} as a text encoder\n\nA decoder-only language model with {attention}, made \
         into a text encoder by LLM2Vec (https://arxiv.org/abs/2404.05961). {adapters}\n\nA vector has {dimensions} numbers: \
         {pooling}{unit}; a text is cut at {} tokens.\n\n```python\nfrom sentence_transformers import SentenceTransformer\n\n\
         model = SentenceTransformer(\"this folder\")\nvectors = model.encode([\"A text.\", \"Another text.\"])\n```\n\nThe same \
         vectors come from `llm2vec encode -m FOLDER`. sentence-transformers 5.4 or later is needed.{since}\n",
        setup.limits.max_length
    )
}

const CARD_SINCE: &str = " Transformers 5.2 or later is needed: before that, Llama and Mistral are causal whatever \
                          config.json says, and the vectors are others.";
