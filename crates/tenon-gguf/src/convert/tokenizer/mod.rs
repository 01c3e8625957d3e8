//! `tokenizer.*`: the vocabulary in the form that llama.cpp has for its kind.

mod bpe;
mod loaded;
mod pre;
mod published;
mod sentencepiece;
mod special;
mod unigram;

use serde_json::{Value as Json, json};

use super::arch::Model;
use super::config::wrong;
use crate::{Error, Metadata, Value};

pub(crate) use bpe::{bpe, bpe_with, llama_hf, word_piece};
pub(crate) use special::Special;
pub(crate) use unigram::{is_unigram, unigram};

/// Types of tokens (`gguf.TokenType`; SentencePiece numbers its own alike).
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// Largest vocabulary.
const MAX_TOKENS: u64 = 1 << 24;

/// Tokens with scores.
pub(crate) struct Vocabulary {
    pub(crate) tokens: Vec<String>,
    pub(crate) scores: Vec<f32>,
    pub(crate) types: Vec<i32>,
}

impl Vocabulary {
    /// Sets a token; one beyond the vocabulary is passed over.
    fn put(&mut self, id: usize, text: String, score: f32, kind: i32) {
        if id < self.tokens.len() {
            (self.tokens[id], self.scores[id], self.types[id]) = (text, score, kind);
        }
    }

    /// Writes the keys of a tokenizer model.
    fn write(self, kind: &str, out: &mut Metadata) {
        out.set("tokenizer.ggml.model", Value::String(kind.into()));
        out.set("tokenizer.ggml.pre", Value::String("default".into()));
        out.set("tokenizer.ggml.tokens", Value::Strings(self.tokens));
        out.set("tokenizer.ggml.scores", Value::F32s(self.scores));
        out.set("tokenizer.ggml.token_type", Value::I32s(self.types));
    }
}

/// A size of a vocabulary, if it is one.
fn size(found: u64) -> Result<usize, Error> {
    if found > MAX_TOKENS {
        return Err(wrong("vocab_size", &json!(found), "at most 16777216"));
    }
    Ok(found as usize)
}

/// A `tokenizer.model` (`_set_vocab_sentencepiece`), its size that of the first of the fields that there is.
pub(crate) fn sentencepiece(
    model: &Model<'_>,
    size_fields: &[&str],
    out: &mut Metadata,
) -> Result<(), Error> {
    let mut vocabulary = sentencepiece::vocabulary(model, size_fields)?;
    sentencepiece::added_tokens(model.files, &mut vocabulary)?;
    sentencepiece::added_decoder(model.files, false, &mut vocabulary)?;
    write_llama(model, vocabulary, out)
}

/// A `tokenizer.model` if there is one, else byte-level BPE.
pub(crate) fn sentencepiece_or_bpe(model: &Model<'_>, out: &mut Metadata) -> Result<(), Error> {
    if model.files.has("tokenizer.model") {
        sentencepiece(model, &["vocab_size_per_layer_input", "vocab_size"], out)
    } else {
        bpe(model, out)
    }
}

/// A `tokenizer.model` with tokens added as Phi 3 has them: in `tokenizer.json` too, and none guessed to be special.
pub(crate) fn phi3(model: &Model<'_>, out: &mut Metadata) -> Result<(), Error> {
    let mut vocabulary = sentencepiece::vocabulary(model, &["vocab_size"])?;
    sentencepiece::added_tokens(model.files, &mut vocabulary)?;
    sentencepiece::added_decoder(model.files, true, &mut vocabulary)?;
    if let Some(tokenizer) = model.files.object("tokenizer.json")? {
        for (id, token) in loaded::own(model.files, &tokenizer)? {
            vocabulary.put(
                id as usize,
                token.text,
                -1000.0,
                if token.special { CONTROL } else { USER_DEFINED },
            );
        }
    }
    write_llama(model, vocabulary, out)
}

/// A `tokenizer.model` with tokens added and replaced as InternLM 2 has them: the end of a chat's turn is the end.
pub(crate) fn internlm2(model: &Model<'_>, out: &mut Metadata) -> Result<(), Error> {
    let found = sentencepiece::internlm2(model)?;
    let size = found.vocabulary.tokens.len() as u64;
    found.vocabulary.write("llama", out);
    out.set("tokenizer.ggml.add_space_prefix", Value::Bool(found.add_dummy_prefix));
    let mut special = Special::load(model.files, false, None, Some(size))?;
    if let Some(id) = found.end_of_turn {
        special.replace("eos", id);
        special.set("eos", id);
    }
    special.write(out);
    Ok(())
}

/// A `tokenizer.model` whose special tokens `tokenizer_config.json` tells: the end of a chat's turn is the end.
pub(crate) fn internlm3(model: &Model<'_>, out: &mut Metadata) -> Result<(), Error> {
    let mut vocabulary = sentencepiece::vocabulary(model, &["vocab_size_per_layer_input", "vocab_size"])?;
    sentencepiece::added_tokens(model.files, &mut vocabulary)?;
    sentencepiece::added_decoder(model.files, false, &mut vocabulary)?;
    let size = vocabulary.tokens.len() as u64;
    vocabulary.write("llama", out);
    let mut special = Special::load(model.files, false, None, Some(size))?;
    let config = model.files.object("tokenizer_config.json")?.unwrap_or_default();
    if let Some(add) = config.get("add_prefix_space").and_then(Json::as_bool) {
        out.set("tokenizer.ggml.add_space_prefix", Value::Bool(add));
    }
    let decoder = config.get("added_tokens_decoder").and_then(Json::as_object);
    for (id, token) in decoder.into_iter().flatten() {
        let is_special = token.get("special").and_then(Json::as_bool) == Some(true);
        let Some(id) = id.parse().ok().filter(|_| is_special) else { continue };
        if text(token, "content") == Some(sentencepiece::END_OF_TURN) {
            special.replace("eos", id);
        }
    }
    special.write(out);
    Ok(())
}

/// Tokens that a tokenizer has (padding included, where there is a `tokenizer.model`).
pub(crate) fn token_count(model: &Model<'_>) -> Result<u64, Error> {
    if model.files.has("tokenizer.model") {
        return Ok(sentencepiece::vocabulary(model, &["vocab_size_per_layer_input", "vocab_size"])?
            .tokens
            .len() as u64);
    }
    let Some(tokenizer) = model.files.object("tokenizer.json")? else {
        return Err(Error::NoTokenizer { dir: model.files.root().into() });
    };
    let words = tokenizer.get("model").and_then(|model| model.get("vocab")).map_or(0, |vocab| match vocab {
        Json::Object(words) => words.len(),
        Json::Array(words) => words.len(),
        _ => 0,
    });
    let added = tokenizer.get("added_tokens").and_then(Json::as_array).map_or(0, Vec::len);
    Ok((words + added) as u64)
}

/// The kinds of segments that an encoder tells apart.
pub(crate) fn token_types(model: &Model<'_>, out: &mut Metadata) -> Result<(), Error> {
    let count = model.config.maybe_integer(&["type_vocab_size"])?.unwrap_or(1);
    let count =
        u32::try_from(count).map_err(|_| wrong("type_vocab_size", &json!(count), "a number of 32 bits"))?;
    out.set("tokenizer.ggml.token_type_count", Value::U32(count));
    Ok(())
}

fn write_llama(model: &Model<'_>, vocabulary: Vocabulary, out: &mut Metadata) -> Result<(), Error> {
    let size = vocabulary.tokens.len() as u64;
    vocabulary.write("llama", out);
    Special::load(model.files, false, None, Some(size))?.write(out);
    Ok(())
}

/// Special tokens of further kinds, with the ids that are known where nothing else says them.
pub(crate) fn more_special(
    model: &Model<'_>,
    kinds: &[&str],
    known: &[(&str, u32)],
    out: &mut Metadata,
) -> Result<(), Error> {
    let mut special = Special::load(model.files, false, Some(kinds), None)?;
    for (kind, id) in known {
        special.set(kind, *id);
    }
    special.write(out);
    Ok(())
}

/// Tokens that models forget to mark as special.
fn looks_special(token: &str) -> bool {
    ["<pad>", "<mask>", "<2mass>", "[@BOS@]"].contains(&token)
        || (token.starts_with("<|") && token.ends_with("|>"))
        || (token.starts_with("<\u{ff5c}") && token.ends_with("\u{ff5c}>"))
        || (token.starts_with("<unused") && token.ends_with('>'))
}

/// `<0x0A>`
fn is_byte(token: &str) -> bool {
    let hex = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    hex.is_some_and(|hex| hex.len() == 2 && hex.bytes().all(|c| c.is_ascii_hexdigit()))
}

/// A field of a JSON object, as text.
fn text<'a>(object: &'a Json, field: &str) -> Option<&'a str> {
    object.get(field).and_then(Json::as_str)
}
