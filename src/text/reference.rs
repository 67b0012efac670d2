//! The setting `compat`, `reference`: the ids and the pooled span of McGill-NLP/llm2vec 0.2.3, quirks included.
//!
//! Where it differs from the default: the text is shortened by words until it has `doc_max_length` tokens, which
//! empties a long text without spaces (Q-E1); the span is counted by tokenising the text once more on its own, which
//! can be one off (Q-E2), and takes the template's tail; truncation drops that tail, and the span may then reach into
//! the instruction or be longer than the row, where the reference crashes (Q-E3).

use crate::error::{Error, Result, Setting, message};
use crate::text::template::Template;
use crate::text::tokenizer::Tokenizer;
use crate::text::{Limits, Prompt};

/// What the reference puts between instruction and text, and splits at again.
const SEPARATOR: &str = "!@#$%^&*()";

/// What it appends for EOS pooling: `model` is `_name_or_path`, `qwen2` the model's class, whatever its template.
pub fn eos_text(template: Template, model: &str, qwen2: bool) -> &'static str {
    match model {
        _ if template.name == "llama3" => "", // its template returns early
        "meta-llama/Meta-Llama-3-8B" => "<|end_of_text|>",
        _ if qwen2 => "<|endoftext|>",
        _ => " </s>",
    }
}

/// The row and span of `text` under `instruction`; `eos` is appended for EOS pooling.
pub fn prompt(
    tokenizer: &Tokenizer,
    template: Template,
    limits: Limits,
    eos: Option<&str>,
    instruction: &str,
    text: &str,
) -> Result<Prompt> {
    let (text, cut) = shorten(tokenizer, limits, text)?;
    let joined = match instruction.is_empty() {
        true => format!("{SEPARATOR}{text}"),
        false => format!("{} {SEPARATOR}{text}", strip(instruction)),
    };
    let mut whole = match template.name {
        "none" => joined,
        _ => format!("{}{}{}", template.prefix, strip(&joined), template.suffix),
    };
    if let Some(eos) = eos.filter(|e| !e.is_empty()) {
        whole = format!("{}{eos}", strip(&whole));
    }
    let pieces: Vec<&str> = whole.split(SEPARATOR).collect();
    let counted = tokenizer.encode(pieces.get(1).unwrap_or(&""), false)?.ids.len().min(limits.max_length);
    let ids = truncated(tokenizer, &pieces.concat(), limits.max_length)?;
    if counted > ids.len() {
        return Err(Error::unsupported(message![
            Setting::Compat,
            format!(" reference: the text has {counted} tokens, the row {}; ", ids.len()),
            "the reference fails here too (#80)"
        ]));
    }
    let span = if counted == 0 { 0..ids.len() } else { ids.len() - counted..ids.len() };
    let all = 0..ids.len();
    Ok(Prompt { ids, text: span, all, cut })
}

/// Tokens with specials, cut on the right as Transformers does: the text loses tokens, the specials stay.
fn truncated(tokenizer: &Tokenizer, text: &str, most: usize) -> Result<Vec<u32>> {
    let mut row = tokenizer.encode(text, true)?;
    let excess = row.ids.len().saturating_sub(most);
    let last = row.special.iter().rposition(|s| !s).map_or(0, |i| i + 1);
    row.ids.drain(last.saturating_sub(excess)..last);
    Ok(row.ids)
}

/// Keeps the first `words * limit / tokens` words until the text has at most `limit` tokens.
fn shorten(tokenizer: &Tokenizer, limits: Limits, text: &str) -> Result<(String, bool)> {
    let count = |text: &str| Ok::<_, Error>(tokenizer.encode(text, false)?.ids.len().min(limits.max_length));
    let (mut text, mut cut) = (text.to_string(), false);
    let mut tokens = count(&text)?;
    while tokens > limits.doc_max_length {
        let words: Vec<&str> = text.split(is_space).filter(|w| !w.is_empty()).collect();
        let kept = (words.len() as f64 * (limits.doc_max_length as f64 / tokens as f64)) as usize;
        text = words[..kept.min(words.len())].join(" ");
        cut = true;
        tokens = count(&text)?;
    }
    Ok((text, cut))
}

/// Python's `str.isspace`: Unicode white space and the four information separators.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Python's `str.strip()`.
fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}
