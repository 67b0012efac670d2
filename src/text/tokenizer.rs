//! `tokenizer.json`, through the `tokenizers` library.

use crate::error::{Error, Result, guarded};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::path::{Path, PathBuf};
use tokenizers::{
    DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
};

/// A tokenizer and the special tokens its folder names.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    bos: Option<u32>,
    eos: Option<u32>,
    mask: Option<u32>,
    specials: Vec<u32>,
    max_length: Option<usize>,
}

/// What the file has that the library does not read; the library itself says of most parts only that no kind of them fits.
fn unreadable(path: &Path, otherwise: &str) -> String {
    let json = std::fs::read(path).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
    let json = json.unwrap_or_default();
    type Named = (&'static str, fn(&Value) -> Option<String>);
    let parts: [Named; 5] = [
        ("normalizer", |part| unknown::<NormalizerWrapper>(part, "normalizers")),
        ("pre_tokenizer", |part| unknown::<PreTokenizerWrapper>(part, "pretokenizers")),
        ("model", |part| unknown::<ModelWrapper>(part, "")),
        ("post_processor", |part| unknown::<PostProcessorWrapper>(part, "processors")),
        ("decoder", |part| unknown::<DecoderWrapper>(part, "decoders")),
    ];
    let wrong = parts.iter().find_map(|(name, unknown)| {
        let part = json.get(name).filter(|part| !part.is_null())?;
        Some(format!("its {name} cannot be read: {}; a newer tokenizers library may know it", unknown(part)?))
    });
    wrong.unwrap_or_else(|| format!("not a tokenizer that can be read: {otherwise}"))
}

/// The first part of the list under `key`, or else this part, that is no `T`: its type, or its beginning.
fn unknown<T: DeserializeOwned>(part: &Value, key: &str) -> Option<String> {
    guarded(|| T::deserialize(part)).err()?;
    let inside = part.get(key).and_then(Value::as_array).into_iter().flatten();
    let own = || match part.get("type") {
        Some(kind) => format!("type {kind}"),
        None => part.to_string().chars().take(60).collect(),
    };
    Some(inside.filter_map(|inner| unknown::<T>(inner, key)).next().unwrap_or_else(own))
}

/// A tokenised text.
pub struct Encoded {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Byte range of each token in the text; empty for tokens that the post-processor added.
    pub offsets: Vec<(usize, usize)>,
    /// Whether the post-processor added the token.
    pub special: Vec<bool>,
}

impl Tokenizer {
    /// Opens the tokenizer of a model folder. Truncation and padding that the file asks for are switched off.
    pub fn open(dir: &Path) -> Result<Tokenizer> {
        let path = dir.join("tokenizer.json");
        if !path.is_file() {
            let what = if dir.join("tokenizer.model").is_file() {
                "missing, and tokenizer.model alone is not read; save the tokenizer once with Transformers"
            } else {
                "missing; a model folder needs its tokenizer"
            };
            return Err(Error::file(path, what));
        }
        let mut inner = guarded(|| tokenizers::Tokenizer::from_file(&path))
            .map_err(|e| Error::file(&path, unreadable(&path, &e.to_string())))?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| Error::file(&path, e.to_string()))?;
        let config = dir.join("tokenizer_config.json");
        let names: Value = match std::fs::read(&config) {
            Ok(text) => serde_json::from_slice(&text)
                .map_err(|e| Error::file(&config, format!("not valid JSON: {e}; repair the file")))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Value::Null,
            Err(e) => return Err(Error::io(&config, e)),
        };
        let id = |key: &str| {
            let token = names.get(key)?;
            let token = token.as_str().or_else(|| token.get("content")?.as_str())?;
            inner.token_to_id(token)
        };
        let (bos, eos, mask) = (id("bos_token"), id("eos_token"), id("mask_token"));
        let named =
            ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
        let specials = named.iter().filter_map(|key| id(key)).collect();
        // Transformers writes 1e30 for "no limit".
        let max_length = names.get("model_max_length").and_then(Value::as_u64);
        let max_length = max_length.and_then(|n| usize::try_from(n).ok());
        Ok(Tokenizer { inner, path, bos, eos, mask, specials, max_length })
    }

    /// Lower-cases every text before anything else, as sentence-transformers' `do_lower_case` asks for.
    pub fn lower_case(&mut self) -> Result<()> {
        use tokenizers::normalizers::{Lowercase, NormalizerWrapper, Sequence};
        let before = self.inner.get_normalizer().cloned();
        let all = std::iter::once(NormalizerWrapper::Lowercase(Lowercase)).chain(before).collect();
        let done = self.inner.with_normalizer(Some(Sequence::new(all)));
        done.map(|_| ()).map_err(|e| Error::file(&self.path, format!("cannot lower-case its texts: {e}")))
    }

    /// The most tokens of a row that `tokenizer_config.json` asks for.
    pub fn max_length(&self) -> Option<usize> {
        self.max_length
    }

    /// Whether `tokenizer_config.json` gives the token a role: BOS, EOS, padding and so on.
    pub fn is_special(&self, id: u32) -> bool {
        self.specials.contains(&id)
    }

    /// Ids run from 0 to one below this, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Beginning of text, if `tokenizer_config.json` names it.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos
    }

    /// End of text, likewise.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos
    }

    /// The mask token, likewise.
    pub fn mask_id(&self) -> Option<u32> {
        self.mask
    }

    /// The spelling of a token.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of a token by its exact spelling.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Tokenises; `add_special` lets the post-processor add BOS and EOS.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Encoded> {
        let e = guarded(|| self.inner.encode(text, add_special));
        let e = e.map_err(|e| Error::file(&self.path, format!("cannot tokenise this text: {e}")))?;
        Ok(Encoded {
            ids: e.get_ids().to_vec(),
            offsets: e.get_offsets().to_vec(),
            special: e.get_special_tokens_mask().iter().map(|&s| s == 1).collect(),
        })
    }
}
