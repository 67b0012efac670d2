//! `config.json` as Transformers writes it, reduced to what the graph needs; the rest is refused by name.

use crate::error::{Error, Result};
use crate::ops::attention::{Heads, Mask};
use serde_json::Value;

/// Which family's defaults apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Llama 1-3.3, Sheared-LLaMA, TinyLlama.
    Llama,
    /// Mistral 7B.
    Mistral,
    /// Qwen2 and Qwen2.5.
    Qwen2,
}

/// How rotary frequencies are scaled for long contexts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// As trained.
    None,
    /// Every frequency divided by `factor`.
    Linear {
        /// Context growth.
        factor: f64,
    },
    /// Llama 3.1's: low frequencies divided, high ones kept, a ramp between.
    Llama3 {
        /// Context growth.
        factor: f64,
        /// Below this many turns over the original context, a frequency is divided.
        low_freq: f64,
        /// Above this many turns it is kept.
        high_freq: f64,
        /// The context length of pre-training.
        original: f64,
    },
}

/// A decoder's dimensions and constants.
#[derive(Clone, Debug)]
pub struct Config {
    /// Family, from `model_type`.
    pub family: Family,
    /// C, model width.
    pub width: usize,
    /// L.
    pub layers: usize,
    /// H, G and D.
    pub heads: Heads,
    /// F, feed-forward width.
    pub feed_forward: usize,
    /// V.
    pub vocab: usize,
    /// Longest position of pre-training; informative.
    pub max_positions: usize,
    /// Epsilon of every RMSNorm.
    pub norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Their scaling.
    pub rope_scaling: RopeScaling,
    /// Window of pre-training, if any.
    pub window: Option<usize>,
    /// Bias on q, k, v.
    pub qkv_bias: bool,
    /// Bias on o.
    pub o_bias: bool,
    /// The head is the embedding.
    pub tied: bool,
    /// `_name_or_path`, or empty.
    pub name: String,
}

/// One linear map of a block, as the checkpoint holds it.
#[derive(Clone, Copy, Debug)]
pub struct Projection {
    /// `self_attn` or `mlp`.
    pub group: &'static str,
    /// `q_proj` … `down_proj`.
    pub module: &'static str,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// Whether it has one.
    pub bias: bool,
}

/// The attention that `--attention` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attention {
    /// Bidirectional, whatever window the config has: how LLM2Vec trains.
    Full,
    /// As the decoder was pre-trained (with its window, if it has one).
    Causal,
    /// Bidirectional within the config's window.
    Window,
}

impl Attention {
    /// The name that `--attention` takes.
    pub fn name(self) -> &'static str {
        match self {
            Attention::Full => "full",
            Attention::Causal => "causal",
            Attention::Window => "window",
        }
    }
}

impl Config {
    /// Refuses ids that the embedding has no row for: a GPU sees it too late to say so, and gives NaN.
    pub fn check_ids(&self, mut ids: impl Iterator<Item = i64>) -> Result<()> {
        match ids.find(|&id| !(0..self.vocab as i64).contains(&id)) {
            Some(id) => unsupported(format!(
                "the tokenizer gives id {id}, the model's vocabulary has {}: they do not belong together",
                self.vocab
            )),
            None => Ok(()),
        }
    }

    /// Reads a parsed `config.json`; what this crate does not run is an error that names it.
    pub fn parse(v: &Value) -> Result<Config> {
        if !v.is_object() {
            return unsupported("config.json is not a JSON object".into());
        }
        let family = family(v)?;
        refuse_unknown_parts(v)?;
        let width = size(v, "hidden_size", None)?;
        let query = size(v, "num_attention_heads", None)?;
        let key = size(v, "num_key_value_heads", Some(query))?;
        let head = size(v, "head_dim", Some(width / query))?;
        if !query.is_multiple_of(key) {
            return unsupported(format!(
                "num_attention_heads = {query} is not a multiple of num_key_value_heads = {key}"
            ));
        }
        if head % 2 == 1 {
            return unsupported(format!("head_dim = {head} is odd; rotary embedding needs an even width"));
        }
        let (rope_theta, rope_scaling) = rope(v)?;
        let bias = flag(v, "attention_bias", false)?;
        Ok(Config {
            family,
            width,
            layers: size(v, "num_hidden_layers", None)?,
            heads: Heads { query, key, width: head },
            feed_forward: size(v, "intermediate_size", None)?,
            vocab: size(v, "vocab_size", None)?,
            max_positions: size(v, "max_position_embeddings", Some(2048))?,
            norm_eps: number(v, "rms_norm_eps", 1e-6)?,
            rope_theta,
            rope_scaling,
            window: window(v, family)?,
            qkv_bias: bias || family == Family::Qwen2,
            o_bias: bias && family == Family::Llama,
            tied: flag(v, "tie_word_embeddings", false)?,
            name: v.get("_name_or_path").and_then(Value::as_str).unwrap_or("").to_string(),
        })
    }

    /// The mask for `attention`. `Window` needs a window in the config.
    pub fn mask(&self, attention: Attention) -> Result<Mask> {
        match (attention, self.window) {
            (Attention::Full, _) => Ok(Mask::Full),
            (Attention::Causal, None) => Ok(Mask::Causal),
            (Attention::Causal, Some(w)) => Ok(Mask::CausalWindow(w)),
            (Attention::Window, Some(w)) => Ok(Mask::Window(w)),
            (Attention::Window, None) => Err(Error::Usage(
                "--attention window: config.json has no sliding_window; use full or causal".into(),
            )),
        }
    }

    /// The seven projections of a block.
    pub fn projections(&self) -> [Projection; 7] {
        let (c, f, h) = (self.width, self.feed_forward, self.heads);
        let (q, kv) = (h.query * h.width, h.key * h.width);
        [
            ("self_attn", "q_proj", q, c, self.qkv_bias),
            ("self_attn", "k_proj", kv, c, self.qkv_bias),
            ("self_attn", "v_proj", kv, c, self.qkv_bias),
            ("self_attn", "o_proj", c, q, self.o_bias),
            ("mlp", "gate_proj", f, c, false),
            ("mlp", "up_proj", f, c, false),
            ("mlp", "down_proj", c, f, false),
        ]
        .map(|(group, module, rows, cols, bias)| Projection { group, module, rows, cols, bias })
    }

    /// Parameters of the body (embedding, layers, final norm), head excluded.
    pub fn parameters(&self) -> u64 {
        let (c, q, f) = (self.width, self.heads.columns(), self.feed_forward);
        let o = self.heads.query * self.heads.width;
        let bias = if self.qkv_bias { q } else { 0 } + if self.o_bias { c } else { 0 };
        let layer = c * q + o * c + 3 * c * f + 2 * c + bias;
        (self.vocab * c + self.layers * layer + c) as u64
    }
}

fn unsupported<T>(what: String) -> Result<T> {
    Err(Error::Unsupported(format!("config.json: {what}")))
}

fn family(v: &Value) -> Result<Family> {
    let architecture = v.pointer("/architectures/0").and_then(Value::as_str).unwrap_or("");
    let model_type = v.get("model_type").and_then(Value::as_str).unwrap_or("");
    match model_type {
        "llama" => Ok(Family::Llama),
        "mistral" => Ok(Family::Mistral),
        "qwen2" => Ok(Family::Qwen2),
        other => unsupported(format!(
            "model_type \"{other}\" (architecture \"{architecture}\") is not built in; expected llama, mistral or qwen2"
        )),
    }
}

fn refuse_unknown_parts(v: &Value) -> Result<()> {
    let act = v.get("hidden_act").and_then(Value::as_str).unwrap_or("silu");
    if act != "silu" {
        return unsupported(format!(
            "hidden_act \"{act}\", expected \"silu\": only SwiGLU blocks are built in"
        ));
    }
    if let Some(q) = v.get("quantization_config").filter(|q| !q.is_null()) {
        let method = q.get("quant_method").and_then(Value::as_str).unwrap_or("unnamed");
        return unsupported(format!(
            "quantization_config ({method}): quantised weights are not read; use the f32, f16 or bf16 checkpoint"
        ));
    }
    if flag(v, "mlp_bias", false)? {
        return unsupported("mlp_bias = true: bias in the feed-forward block is not built in".into());
    }
    if number(v, "partial_rotary_factor", 1.0)? != 1.0 {
        return unsupported("partial_rotary_factor other than 1 is not built in".into());
    }
    Ok(())
}

/// The window of pre-training. Qwen2 writes one and switches it off.
fn window(v: &Value, family: Family) -> Result<Option<usize>> {
    let on = match family {
        Family::Llama => false,
        Family::Mistral => v.get("sliding_window").is_some_and(|w| !w.is_null()),
        Family::Qwen2 => flag(v, "use_sliding_window", false)?,
    };
    if !on {
        return Ok(None);
    }
    if family == Family::Qwen2 && number(v, "max_window_layers", 0.0)? > 0.0 {
        return unsupported(
            "use_sliding_window with max_window_layers > 0: windows by layer are not built in".into(),
        );
    }
    size(v, "sliding_window", None).map(Some)
}

/// Theta and scaling, from `rope_parameters` (Transformers 5) or `rope_theta` and `rope_scaling` (before).
fn rope(v: &Value) -> Result<(f64, RopeScaling)> {
    let present = |key: &str| v.get(key).filter(|s| !s.is_null());
    let scaling = present("rope_parameters").or(present("rope_scaling"));
    let Some(s) = scaling else { return Ok((positive(v, "rope_theta", 1e4)?, RopeScaling::None)) };
    let theta = if s.get("rope_theta").is_some() { s } else { v };
    let theta = positive(theta, "rope_theta", 1e4)?;
    let kind = s.get("rope_type").or(s.get("type")).and_then(Value::as_str).unwrap_or("default");
    let scaling = match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: positive(s, "factor", f64::NAN)? },
        "llama3" => RopeScaling::Llama3 {
            factor: positive(s, "factor", f64::NAN)?,
            low_freq: positive(s, "low_freq_factor", f64::NAN)?,
            high_freq: positive(s, "high_freq_factor", f64::NAN)?,
            original: positive(s, "original_max_position_embeddings", f64::NAN)?,
        },
        other => {
            return unsupported(format!(
                "rope scaling \"{other}\" is not built in; expected default, linear or llama3"
            ));
        }
    };
    if let RopeScaling::Llama3 { low_freq, high_freq, .. } = scaling
        && low_freq >= high_freq
    {
        return unsupported(format!(
            "low_freq_factor = {low_freq} is not below high_freq_factor = {high_freq}"
        ));
    }
    Ok((theta, scaling))
}

/// The most that any one dimension may be: keeps products of four of them far from overflow.
const LARGEST: u64 = 1 << 24;

fn size(v: &Value, key: &str, default: Option<usize>) -> Result<usize> {
    match v.get(key).filter(|x| !x.is_null()) {
        None => default.filter(|&d| d > 0).map_or_else(|| unsupported(format!("\"{key}\" is missing")), Ok),
        Some(x) => match x.as_u64() {
            Some(n) if (1..=LARGEST).contains(&n) => Ok(n as usize),
            _ => unsupported(format!("\"{key}\" is {x}, expected an integer from 1 to {LARGEST}")),
        },
    }
}

fn number(v: &Value, key: &str, default: f64) -> Result<f64> {
    match v.get(key).filter(|x| !x.is_null()) {
        None => Ok(default),
        Some(x) => x.as_f64().map_or_else(|| unsupported(format!("\"{key}\" is {x}, expected a number")), Ok),
    }
}

fn positive(v: &Value, key: &str, default: f64) -> Result<f64> {
    let x = number(v, key, default)?;
    if x > 0.0 && x.is_finite() { Ok(x) } else { unsupported(format!("\"{key}\" is missing or not above 0")) }
}

fn flag(v: &Value, key: &str, default: bool) -> Result<bool> {
    match v.get(key).filter(|x| !x.is_null()) {
        None => Ok(default),
        Some(x) => {
            x.as_bool().map_or_else(|| unsupported(format!("\"{key}\" is {x}, expected true or false")), Ok)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn base() -> Value {
        json!({"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2,
               "intermediate_size": 128, "vocab_size": 100})
    }

    fn with(key: &str, value: Value) -> Result<Config> {
        let mut v = base();
        v[key] = value;
        Config::parse(&v)
    }

    #[test]
    fn old_and_new_rope_fields_agree() {
        let old = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 8192});
        let mut new = old.clone();
        new["rope_theta"] = json!(500000.0);
        let mut v = base();
        v["rope_theta"] = json!(500000.0);
        v["rope_scaling"] = old;
        let (a, b) = (Config::parse(&v).unwrap(), with("rope_parameters", new).unwrap());
        assert_eq!((a.rope_theta, a.rope_scaling), (b.rope_theta, b.rope_scaling));
        assert_eq!(a.rope_theta, 500000.0);
        let linear = with("rope_scaling", json!({"type": "linear", "factor": 2})).unwrap();
        assert_eq!(linear.rope_scaling, RopeScaling::Linear { factor: 2.0 });
    }

    #[test]
    fn refusals_name_the_cause() {
        for (key, value, word) in [
            ("model_type", json!("gemma2"), "gemma2"),
            ("hidden_act", json!("gelu"), "gelu"),
            ("quantization_config", json!({"quant_method": "gptq"}), "gptq"),
            ("rope_scaling", json!({"rope_type": "yarn", "factor": 4.0}), "yarn"),
            ("mlp_bias", json!(true), "mlp_bias"),
            ("head_dim", json!(7), "head_dim"),
            ("num_key_value_heads", json!(3), "num_key_value_heads"),
            ("vocab_size", json!(-1), "vocab_size"),
            ("hidden_size", json!(0), "hidden_size"),
            ("hidden_size", json!(1u64 << 60), "hidden_size"),
            ("rms_norm_eps", json!("small"), "rms_norm_eps"),
        ] {
            let message = with(key, value).unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
    }

    #[test]
    fn qwen2_has_biases_and_ignores_a_window_that_is_off() {
        let mut v = base();
        v["model_type"] = json!("qwen2");
        v["sliding_window"] = json!(32768);
        let c = Config::parse(&v).unwrap();
        assert!(c.qkv_bias && !c.o_bias && c.window.is_none());
        assert!(c.mask(Attention::Window).is_err());
    }
}
