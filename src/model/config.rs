//! `config.json` as Transformers writes it, reduced to what the graph needs; the rest is refused by name.

use crate::error::{Error, Result, Setting, message};
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

/// What a family's class in Transformers takes for a key that the file leaves out, where the families differ.
struct Defaults {
    feed_forward: usize,
    vocab: usize,
    /// `None`: as many as query heads.
    key_heads: Option<usize>,
    max_positions: usize,
}

impl Family {
    fn defaults(self) -> Defaults {
        let [feed_forward, vocab, max_positions] = match self {
            Family::Llama => [11008, 32000, 2048],
            Family::Mistral => [14336, 32000, 1 << 17],
            Family::Qwen2 => [22016, 151_936, 1 << 15],
        };
        let key_heads = match self {
            Family::Llama => None,
            Family::Mistral => Some(8),
            Family::Qwen2 => Some(32),
        };
        Defaults { feed_forward, vocab, key_heads, max_positions }
    }
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
    /// Window of pre-training, if any layer has one.
    pub window: Option<usize>,
    /// Layers that have it.
    pub windowed: usize,
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

/// The attention that the setting names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Attention {
    /// Bidirectional, whatever window the config has: how LLM2Vec trains.
    Full,
    /// As the decoder was pre-trained (with its window, if it has one).
    Causal,
    /// Bidirectional within the config's window: keys at a distance of at most `sliding_window`, both sides, as
    /// Transformers 5 masks a model of `"is_causal": false` by default (sdpa and eager). Its flash-attention backend
    /// stops one short, and so does every backend for a causal model, where the window counts the query itself.
    Window,
}

impl Attention {
    /// By the name that a file records.
    pub fn by_name(name: &str) -> Result<Attention> {
        let all = [Attention::Full, Attention::Causal, Attention::Window];
        let wanted = || Error::usage(format!("attention `{name}`: expected full, causal or window"));
        all.into_iter().find(|attention| attention.name() == name).ok_or_else(wanted)
    }

    /// The name that the setting takes.
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
        refuse_unknown_parts(v, family)?;
        let usual = family.defaults();
        let width = size(v, "hidden_size", 4096)?;
        let heads = heads(v, width, usual.key_heads)?;
        let layers = size(v, "num_hidden_layers", 32)?;
        let max_positions = size(v, "max_position_embeddings", usual.max_positions)?;
        let (rope_theta, rope_scaling) = rope(v, max_positions)?;
        let (window, windowed) = windows(v, family, layers)?;
        // The other families' classes have no such key: a Mistral never has a bias, a Qwen2 always on q, k, v.
        let bias = family == Family::Llama && flag(v, "attention_bias", false)?;
        Ok(Config {
            family,
            width,
            layers,
            heads,
            feed_forward: size(v, "intermediate_size", usual.feed_forward)?,
            vocab: size(v, "vocab_size", usual.vocab)?,
            max_positions,
            norm_eps: number(v, "rms_norm_eps", 1e-6)?,
            rope_theta,
            rope_scaling,
            window,
            windowed,
            qkv_bias: bias || family == Family::Qwen2,
            o_bias: bias,
            tied: flag(v, "tie_word_embeddings", false)?,
            name: v.get("_name_or_path").and_then(Value::as_str).unwrap_or("").to_string(),
        })
    }

    /// The mask for `attention`. `Window` needs a window in the config; but for `Full`, all layers must agree on it.
    pub fn mask(&self, attention: Attention) -> Result<Mask> {
        let (name, window) = match (attention, self.window) {
            (Attention::Full, _) => return Ok(Mask::Full),
            (Attention::Causal, None) => return Ok(Mask::Causal),
            (Attention::Window, None) => {
                return Err(Error::usage(message![
                    Setting::Attention,
                    " window: config.json has no sliding_window; use full or causal",
                ]));
            }
            (Attention::Causal, Some(w)) => ("causal", Mask::CausalWindow(w)),
            (Attention::Window, Some(w)) => ("window", Mask::Window(w + 1)),
        };
        if self.windowed < self.layers {
            let some =
                format!("config.json: {} of {} layers have a sliding_window, ", self.windowed, self.layers);
            let (attention, all) = (Setting::Attention, format!(" {name} needs the same in all; use "));
            return Err(Error::unsupported(message![some, attention, all, attention, " full"]));
        }
        Ok(window)
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
    Err(Error::unsupported(format!("config.json: {what}")))
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

fn refuse_unknown_parts(v: &Value, family: Family) -> Result<()> {
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
    if family == Family::Llama && flag(v, "mlp_bias", false)? {
        return unsupported("mlp_bias = true: bias in the feed-forward block is not built in".into());
    }
    Ok(())
}

/// H, G and D. Without `num_key_value_heads` the family's own number counts, with a null as many as query heads.
fn heads(v: &Value, width: usize, usual: Option<usize>) -> Result<Heads> {
    let given = |key: &str| v.get(key).is_some_and(|x| !x.is_null());
    let query = size(v, "num_attention_heads", 32)?;
    let key = match (v.get("num_key_value_heads"), usual) {
        (Some(Value::Null), _) | (None, None) => query,
        (_, usual) => size(v, "num_key_value_heads", usual.unwrap_or(query))?,
    };
    let head = if given("head_dim") { size(v, "head_dim", 0)? } else { width / query };
    if !query.is_multiple_of(key) {
        let usual = if given("num_key_value_heads") { "" } else { ", which is not given: the family's own" };
        return unsupported(format!(
            "num_attention_heads = {query} is not a multiple of num_key_value_heads = {key}{usual}"
        ));
    }
    if head == 0 || head % 2 == 1 {
        return unsupported(format!("head_dim = {head}; rotary embedding needs an even width above 0"));
    }
    Ok(Heads { query, key, width: head })
}

/// The window of pre-training and how many layers have it. Llama's class reads no window; Mistral's has one unless the
/// key is null; Qwen2's is off by default, and on only from a layer on. `layer_types` says it layer by layer (a Mistral
/// with that key is opened by `AutoModel` as the Ministral, which is the same but for this).
fn windows(v: &Value, family: Family, layers: usize) -> Result<(Option<usize>, usize)> {
    let on = match family {
        Family::Llama => false,
        Family::Mistral => true,
        Family::Qwen2 => flag(v, "use_sliding_window", false)?,
    };
    if !on || v.get("sliding_window").is_some_and(Value::is_null) {
        return Ok((None, 0));
    }
    let window = size(v, "sliding_window", 4096)?;
    let windowed = match v.get("layer_types").filter(|t| !t.is_null()) {
        Some(types) => windowed_layers(types, layers)?,
        None if family == Family::Mistral => layers,
        None => layers.saturating_sub(number(v, "max_window_layers", 28.0)?.max(0.0) as usize),
    };
    Ok(((windowed > 0).then_some(window), windowed))
}

fn windowed_layers(types: &Value, layers: usize) -> Result<usize> {
    let types = types.as_array().map_or(&[][..], Vec::as_slice);
    if types.len() != layers {
        return unsupported(format!("layer_types has {} entries for {layers} layers", types.len()));
    }
    let full = [Some("full_attention"), Some("attention")];
    let others = types.iter().filter(|t| !full.contains(&t.as_str()));
    match others.clone().find(|t| t.as_str() != Some("sliding_attention")) {
        Some(other) => unsupported(format!(
            "layer_types has {other}, which is not built in; expected full_attention or sliding_attention"
        )),
        None => Ok(others.count()),
    }
}

/// Theta and scaling as Transformers 5 finds them: `rope_scaling`, the older key, replaces `rope_parameters` as a whole
/// where both are there; theta is taken from the one that counts, else from the top, never from the other.
fn rope(v: &Value, max_positions: usize) -> Result<(f64, RopeScaling)> {
    let filled =
        |key| v.get(key).filter(|s: &&Value| !s.is_null() && s.as_object().is_none_or(|o| !o.is_empty()));
    let empty = Value::Object(Default::default());
    let (name, s) = ["rope_scaling", "rope_parameters"]
        .into_iter()
        .find_map(|key| Some((key, filled(key)?)))
        .unwrap_or(("rope_parameters", &empty));
    if s.as_object().is_none_or(|o| o.values().any(Value::is_object)) {
        return unsupported(format!(
            "{name} is {s}, expected one object of numbers; rope by layer is not built in"
        ));
    }
    let place = |key: &str| if s.get(key).is_some() { s } else { v };
    let theta = positive(place("rope_theta"), "rope_theta", 1e4)?;
    let part = place("partial_rotary_factor").get("partial_rotary_factor");
    if let Some(part) = part.filter(|p| !p.is_null() && p.as_f64() != Some(1.0)) {
        return unsupported(format!("partial_rotary_factor = {part} is not built in; expected 1"));
    }
    let kind = s.get("rope_type").or(s.get("type"));
    let kind = kind.map_or("default", |k| k.as_str().unwrap_or("that is no string"));
    let scaling = match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: positive(s, "factor", f64::NAN)? },
        "llama3" => RopeScaling::Llama3 {
            factor: positive(s, "factor", f64::NAN)?,
            low_freq: positive(s, "low_freq_factor", f64::NAN)?,
            high_freq: positive(s, "high_freq_factor", f64::NAN)?,
            original: {
                // The one key for which the top goes first.
                let key = "original_max_position_embeddings";
                positive(if v.get(key).is_some() { v } else { s }, key, max_positions as f64)?
            },
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

fn size(v: &Value, key: &str, default: usize) -> Result<usize> {
    match v.get(key) {
        None => Ok(default),
        Some(x) => match x.as_u64() {
            Some(n) if (1..=LARGEST).contains(&n) => Ok(n as usize),
            _ => unsupported(format!("\"{key}\" is {x}, expected an integer from 1 to {LARGEST}")),
        },
    }
}

fn number(v: &Value, key: &str, default: f64) -> Result<f64> {
    match v.get(key) {
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
        v["num_key_value_heads"] = json!(4);
        v["sliding_window"] = json!(32768);
        let c = Config::parse(&v).unwrap();
        assert!(c.qkv_bias && !c.o_bias && c.window.is_none());
        assert!(c.mask(Attention::Window).is_err());
    }
}
