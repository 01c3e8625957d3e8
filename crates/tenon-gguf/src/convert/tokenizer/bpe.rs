//! BPE from `tokenizer.json`: over bytes, as GPT-2 has it, or with bytes as a fallback, as Llama 2 has it.

use serde_json::Value as Json;

use super::super::arch::Model;
use super::loaded::{self, FILE, Loaded};
use super::{
    BYTE, CONTROL, NORMAL, Special, UNUSED, USER_DEFINED, Vocabulary, is_byte, looks_special, text,
    write_llama,
};
use crate::{Error, Metadata, Value};

/// The tokens that `get_vocab_base` of the converter finds.
pub(crate) struct Base {
    pub(crate) tokens: Vec<String>,
    pub(crate) types: Vec<i32>,
    pub(crate) pre: String,
}

/// Byte-level BPE (`_set_vocab_gpt2`).
pub(crate) fn bpe(model: &Model<'_>, out: &mut Metadata) -> Result<(), Error> {
    write_base(base(model)?, "gpt2", out);
    Special::load(model.files, true, None, None)?.write(out);
    Ok(())
}

/// The same, with added tokens as the special ones of kinds that nothing else names.
pub(crate) fn bpe_with(model: &Model<'_>, kinds: &[(&str, &str)], out: &mut Metadata) -> Result<(), Error> {
    write_base(base(model)?, "gpt2", out);
    let mut special = Special::load(model.files, true, None, None)?;
    let added = loaded::load(model)?.added;
    for (kind, content) in kinds {
        let found = added.iter().find(|(_, token)| token.text == *content);
        let (id, _) = found.ok_or_else(|| {
            model
                .files
                .wrong(FILE, format!("it has no added token {content}, which models of this family have"))
        })?;
        special.set(kind, u32::try_from(*id).unwrap_or(u32::MAX));
    }
    special.write(out);
    Ok(())
}

/// WordPiece: tokens that begin a word are marked, rather than those that go on with it.
pub(crate) fn word_piece(model: &Model<'_>, out: &mut Metadata) -> Result<(), Error> {
    let mut base = base(model)?;
    for (token, kind) in base.tokens.iter_mut().zip(&base.types) {
        if *kind != CONTROL {
            *token = match token.strip_prefix("##") {
                Some(rest) => rest.to_string(),
                None => format!("\u{2581}{token}"),
            };
        }
    }
    let size = base.tokens.len() as u64;
    write_base(base, "bert", out);
    Special::load(model.files, false, None, Some(size))?.write(out);
    Ok(())
}

/// Writes the keys of tokens without scores.
pub(crate) fn write_base(base: Base, kind: &str, out: &mut Metadata) {
    out.set("tokenizer.ggml.model", Value::String(kind.into()));
    out.set("tokenizer.ggml.pre", Value::String(base.pre));
    out.set("tokenizer.ggml.tokens", Value::Strings(base.tokens));
    out.set("tokenizer.ggml.token_type", Value::I32s(base.types));
}

/// All tokens by number, and the pre-tokenizer's name.
pub(crate) fn base(model: &Model<'_>) -> Result<Base, Error> {
    let files = model.files;
    let Some(tokenizer) = files.object(FILE)? else {
        return Err(Error::NoTokenizer { dir: files.root().into() });
    };
    let Loaded { vocabulary, added, .. } = loaded::load(model)?;
    let last = vocabulary.keys().chain(added.keys()).max().copied();
    let size = match model.config.maybe_integer(&["vocab_size"])? {
        Some(size) => super::size(size)? as u64,
        None => last.map_or(0, |last| last + 1),
    };
    if let Some(last) = last.filter(|last| *last >= size) {
        return Err(
            files.wrong(FILE, format!("token {last} is beyond the vocabulary of {size} in config.json"))
        );
    }
    let pre = match model.pre_tokenizer {
        Some(pre) => pre.to_string(),
        None => super::pre::recognise(&tokenizer)?,
    };
    let decodes_bytes = is_byte_level(tokenizer.get("decoder"), 0);
    let (mut tokens, mut types) = (vec![], vec![]);
    for id in 0..size {
        if let Some(token) = added.get(&id) {
            // One that is not normalized goes through the tokenizer and back.
            let decoded =
                if token.normalized || !decodes_bytes { None } else { from_byte_level(&token.text) };
            let text = decoded.unwrap_or_else(|| token.text.clone());
            if token.special || looks_special(&text) {
                types.push(CONTROL);
                tokens.push(text);
            } else {
                types.push(USER_DEFINED);
                tokens.push(text.replace('\u{2581}', " "));
            }
        } else if let Some(text) = vocabulary.get(&id) {
            types.push(NORMAL);
            tokens.push(text.clone());
        } else {
            types.push(UNUSED);
            tokens.push(format!("[PAD{id}]"));
        }
    }
    Ok(Base { tokens, types, pre })
}

/// Whether a decoder brings the letters that stand for bytes back to bytes.
fn is_byte_level(decoder: Option<&Json>, depth: u32) -> bool {
    let Some(decoder) = decoder else { return false };
    let inner = decoder.get("decoders").and_then(Json::as_array);
    text(decoder, "type") == Some("ByteLevel")
        || (depth < 16
            && inner.is_some_and(|inner| inner.iter().any(|it| is_byte_level(Some(it), depth + 1))))
}

/// A text of letters that each stand for a byte, as GPT-2 has them; none if one of its letters does not.
/// What is no UTF-8 then is replaced.
fn from_byte_level(text: &str) -> Option<String> {
    // Bytes that are letters themselves; the others are the letters from U+0100 on, in their order.
    let is_itself = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let byte = |c: char| match u8::try_from(c) {
        Ok(byte) => is_itself(byte).then_some(byte),
        Err(_) => (0..=255).filter(|byte| !is_itself(*byte)).nth((u32::from(c) as usize).checked_sub(256)?),
    };
    let bytes: Option<Vec<u8>> = text.chars().map(byte).collect();
    Some(String::from_utf8_lossy(&bytes?).into_owned())
}

/// A SentencePiece tokenizer that only `tokenizer.json` is left of (`LlamaHfVocab`). False if it is none.
pub(crate) fn llama_hf(model: &Model<'_>, out: &mut Metadata) -> Result<bool, Error> {
    let Some(tokenizer) = model.files.object(FILE)? else { return Ok(false) };
    let field = |name: &str| tokenizer.get("model").and_then(|model| model.get(name));
    let is_bpe = field("type").and_then(Json::as_str) == Some("BPE");
    let has_bytes = field("byte_fallback").and_then(Json::as_bool) == Some(true);
    let is_sequence = tokenizer.get("decoder").and_then(|decoder| text(decoder, "type")) == Some("Sequence");
    if !(is_bpe && has_bytes && is_sequence) {
        return Ok(false);
    }
    let Loaded { vocabulary, added, named } = loaded::load(model)?;
    let base = vocabulary.len() as u64;
    let (mut tokens, mut types) = (vec![], vec![]);
    for text in vocabulary.into_values() {
        types.push(match () {
            () if is_byte(&text) => BYTE,
            () if named.contains(&text) => CONTROL,
            () => NORMAL,
        });
        tokens.push(text);
    }
    for (_, token) in added.into_iter().filter(|(id, _)| *id >= base) {
        types.push(if named.contains(&token.text) { CONTROL } else { USER_DEFINED });
        tokens.push(token.text);
    }
    let scores = vec![-1000.0; tokens.len()];
    write_llama(model, Vocabulary { tokens, scores, types }, out)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_stand_for_bytes() {
        assert_eq!(from_byte_level("\u{120}\u{120}x").as_deref(), Some("  x"));
        assert_eq!(from_byte_level("\u{c9}t").as_deref(), Some("\u{fffd}t"));
        assert_eq!(from_byte_level("\u{c3}\u{a9}\u{143}").as_deref(), Some("\u{e9}\u{fffd}"));
        assert_eq!(from_byte_level("a b"), None);
        assert_eq!(from_byte_level("\u{ff5c}"), None);
    }
}
