//! Unigram, as XLM-RoBERTa has it (`_xlmroberta_set_vocab` of the converter): llama.cpp's tokenizer of T5.

use std::collections::{BTreeMap, HashMap};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value as Json};

use super::super::arch::Model;
use super::super::files::ModelFiles;
use super::sentencepiece::SentencePiece;
use super::{
    CONTROL, NORMAL, Special, UNKNOWN, UNUSED, USER_DEFINED, Vocabulary, loaded, sentencepiece, text,
};
use crate::{Error, Metadata, Value};

const MODEL: &str = "sentencepiece.bpe.model";
const JSON: &str = "tokenizer.json";
const CONFIG: &str = "tokenizer_config.json";

/// What the keys of the tokenizer need.
struct Unigram {
    vocabulary: Vocabulary,
    add_prefix: bool,
    remove_whitespace: bool,
    charsmap: Vec<u8>,
}

/// Whether `tokenizer.json` is one of these, rather than WordPiece.
pub(crate) fn is_unigram(files: &ModelFiles) -> Result<bool, Error> {
    let Some(tokenizer) = files.object(JSON)? else {
        return Err(Error::NoTokenizer { dir: files.root().into() });
    };
    match tokenizer.get("model").and_then(|model| text(model, "type")) {
        Some("Unigram") => Ok(true),
        Some("WordPiece") => Ok(false),
        _ => Err(files.wrong(JSON, "its model is neither Unigram nor WordPiece")),
    }
}

/// Tokens and scores of `sentencepiece.bpe.model`, else of `tokenizer.json`.
pub(crate) fn unigram(model: &Model<'_>, out: &mut Metadata) -> Result<(), Error> {
    let files = model.files;
    let found = if files.has(MODEL) { from_model(model)? } else { from_json(model)? };
    let size = found.vocabulary.tokens.len() as u64;
    found.vocabulary.write("t5", out);
    out.set("tokenizer.ggml.add_space_prefix", Value::Bool(found.add_prefix));
    super::token_types(model, out)?;
    out.set("tokenizer.ggml.remove_extra_whitespaces", Value::Bool(found.remove_whitespace));
    if !found.charsmap.is_empty() {
        let bytes = Value::Other(0, found.charsmap.len() as u64, found.charsmap);
        out.set("tokenizer.ggml.precompiled_charsmap", bytes);
    }
    Special::load(files, false, None, Some(size))?.write(out);
    Ok(())
}

/// A vocabulary of padding, as long as `config.json` says, and no shorter than what there is.
fn padding(model: &Model<'_>, least: usize) -> Result<Vocabulary, Error> {
    let said = model.config.maybe_integer(&["vocab_size"])?.unwrap_or(0);
    let size = super::size(said)?.max(least);
    Ok(Vocabulary {
        tokens: (0..size).map(|i| format!("[PAD{i}]")).collect(),
        scores: vec![-10000.0; size],
        types: vec![UNUSED; size],
    })
}

/// The model that a tokenizer was made from: fairseq put four tokens in the place of its first three.
fn from_model(model: &Model<'_>) -> Result<Unigram, Error> {
    let files = model.files;
    let SentencePiece { pieces, is_unigram, add_dummy_prefix, remove_extra_whitespaces, charsmap } =
        sentencepiece::open(files, MODEL)?;
    if !is_unigram {
        return Err(files.wrong(MODEL, "it is not a Unigram model, as XLM-RoBERTa's is"));
    }
    let mut found = padding(model, pieces.len())?;
    for (id, piece) in pieces.into_iter().enumerate() {
        let kind = piece.token_type();
        found.put(id, piece.text, piece.score, kind);
    }
    let last = found.tokens.len() - 1;
    if last < 3 {
        return Err(files.wrong(MODEL, "it has fewer than four pieces"));
    }
    // The last one makes room, too: it is padding.
    found.tokens.truncate(last);
    found.tokens.splice(..3, ["<s>", "<pad>", "</s>", "<unk>"].map(str::to_string));
    found.scores.truncate(last);
    found.scores.splice(..3, [0.0; 4]);
    found.types.truncate(last);
    found.types.splice(..3, [CONTROL, CONTROL, CONTROL, UNKNOWN]);
    if model.architecture == "nomic-bert-moe" {
        // The model has no mask.
        let mask = 250_001;
        if mask >= found.tokens.len() {
            let reason = format!("{} tokens; those of this family have more than {mask}", found.tokens.len());
            return Err(files.wrong(MODEL, reason));
        }
        found.put(mask, "<mask>".into(), 0.0, CONTROL);
    }
    Ok(Unigram {
        vocabulary: found,
        add_prefix: add_dummy_prefix,
        remove_whitespace: remove_extra_whitespaces,
        charsmap,
    })
}

fn from_json(model: &Model<'_>) -> Result<Unigram, Error> {
    let files = model.files;
    let Some(tokenizer) = files.object(JSON)? else {
        return Err(Error::NoTokenizer { dir: files.root().into() });
    };
    let config = files.object(CONFIG)?.unwrap_or_default();
    let field = |name: &str| tokenizer.get("model").and_then(|model| model.get(name));
    let Some(words) = field("vocab").and_then(Json::as_array) else {
        return Err(files.wrong(JSON, "its model has no vocab of pieces and scores"));
    };
    let charsmap = tokenizer.get("normalizer").and_then(|it| it.get("precompiled_charsmap"));
    let Some(charsmap) = charsmap.and_then(Json::as_str).and_then(|it| BASE64.decode(it).ok()) else {
        return Err(files.wrong(JSON, "its normalizer is no precompiled_charsmap, which llama.cpp needs"));
    };
    let added: BTreeMap<_, _> = loaded::own(files, &tokenizer)?.into_iter().collect();
    let number: HashMap<&str, u64> = added.iter().map(|(id, token)| (token.text.as_str(), *id)).collect();
    let unknown = config.get("unk_token").and_then(content).and_then(|text| number.get(text).copied());
    let unknown = unknown.or_else(|| field("unk_id").and_then(Json::as_u64)).unwrap_or(3);
    let is_xlm = is_xlm_roberta(model, &config);
    let special = special_tokens(&config, is_xlm);
    let mut found = padding(model, words.len())?;
    for (id, word) in words.iter().enumerate() {
        let (Some(text), Some(score)) =
            (word.get(0).and_then(Json::as_str), word.get(1).and_then(Json::as_f64))
        else {
            return Err(files.wrong(JSON, format!("entry {id} of its vocab is no piece and score")));
        };
        let added = added.get(&(id as u64));
        let text = added.map_or(text, |token| token.text.as_str());
        let kind = match () {
            () if id as u64 == unknown => UNKNOWN,
            () if special.contains(&text) => CONTROL,
            () if added.is_some() => USER_DEFINED,
            () => NORMAL,
        };
        found.put(id, text.into(), score as f32, kind);
    }
    let flag = |name: &str| config.get(name).and_then(Json::as_bool);
    Ok(Unigram {
        vocabulary: found,
        add_prefix: flag("add_prefix_space").unwrap_or(is_xlm),
        // What the converter takes for it.
        remove_whitespace: flag("clean_up_tokenization_spaces").unwrap_or(false),
        charsmap,
    })
}

/// Whether transformers reads the tokenizer with XLM-RoBERTa's class, which has defaults.
fn is_xlm_roberta(model: &Model<'_>, config: &Map<String, Json>) -> bool {
    match config.get("tokenizer_class").and_then(Json::as_str) {
        Some(class) => class.trim_end_matches("Fast") == "XLMRobertaTokenizer",
        None => model.config.get("model_type").and_then(Json::as_str) == Some("xlm-roberta"),
    }
}

/// Tokens that `tokenizer_config.json` gives a part to, or else the tokenizer's class.
fn special_tokens(config: &Map<String, Json>, is_xlm: bool) -> Vec<&str> {
    let named = [
        ("bos_token", "<s>"),
        ("eos_token", "</s>"),
        ("unk_token", "<unk>"),
        ("sep_token", "</s>"),
        ("pad_token", "<pad>"),
        ("cls_token", "<s>"),
        ("mask_token", "<mask>"),
    ];
    let default = |text| if is_xlm { Some(text) } else { None };
    let named = named.iter().filter_map(|(key, text)| match config.get(*key) {
        Some(token) => content(token),
        None => default(*text),
    });
    let more = ["additional_special_tokens", "extra_special_tokens"];
    let more = more.iter().filter_map(|key| config.get(*key)).flat_map(|list| match list {
        Json::Array(tokens) => tokens.iter().filter_map(content).collect(),
        Json::Object(tokens) => tokens.values().filter_map(content).collect(),
        _ => vec![],
    });
    named.chain(more).collect()
}

/// A token's text: as it is, or within an object.
fn content(token: &Json) -> Option<&str> {
    token.as_str().or_else(|| text(token, "content"))
}
