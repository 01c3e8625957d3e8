//! SentencePiece: the pieces of a `tokenizer.model` with what was added to them later.

use serde_json::Value as Json;

use super::super::arch::Model;
use super::super::files::ModelFiles;
use super::{BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Vocabulary, looks_special};
use crate::Error;

/// The vocabulary, its size that of the first of the fields that `config.json` has.
pub(crate) fn vocabulary(model: &Model<'_>, size_fields: &[&str]) -> Result<Vocabulary, Error> {
    let (files, name) = (model.files, "tokenizer.model");
    let pieces = open(files, name)?.pieces;
    let size = match model.config.maybe_integer(size_fields)? {
        Some(size) if size > 0 => super::size(size)?,
        _ => pieces.len(),
    };
    let mut vocabulary = Vocabulary {
        tokens: (0..size).map(|i| format!("[PAD{i}]")).collect(),
        scores: vec![-10000.0; size],
        types: vec![UNUSED; size],
    };
    for (id, piece) in pieces.into_iter().take(size).enumerate() {
        let kind = piece.token_type();
        vocabulary.put(id, piece.text, piece.score, kind);
    }
    Ok(vocabulary)
}

/// The vocabulary of InternLM 2: each token as the last file has it that names it, guessed at in none.
pub(crate) fn internlm2(model: &Model<'_>) -> Result<InternLm2, Error> {
    let (files, name) = (model.files, "tokenizer.model");
    let SentencePiece { mut pieces, add_dummy_prefix, .. } = open(files, name)?;
    if let Some(size) = model.config.maybe_integer(&["vocab_size"])? {
        let size = super::size(size)?;
        if size > pieces.len() {
            let found = pieces.len();
            return Err(files.wrong(name, format!("it has {found} pieces; config.json says {size}")));
        }
        pieces.truncate(size);
    }
    let mut vocabulary = Vocabulary { tokens: vec![], scores: vec![], types: vec![] };
    for piece in pieces {
        let is_unused = piece.text.starts_with("[UNUSED");
        vocabulary.types.push(if is_unused { UNUSED } else { piece.token_type() });
        // llama.cpp would take it for the end of a text.
        vocabulary.tokens.push(if piece.text == "\0" { "\u{1f409}".into() } else { piece.text });
        vocabulary.scores.push(piece.score);
    }
    for (text, _) in files.object("added_tokens.json")?.unwrap_or_default() {
        vocabulary.tokens.push(text);
        vocabulary.scores.push(-1000.0);
        vocabulary.types.push(USER_DEFINED);
    }
    let mut end_of_turn = None;
    let mut add = |file: &str, id: Option<u64>, token: &Json| {
        let text = token.get("content").and_then(Json::as_str);
        let (Some(id), Some(text)) = (id.filter(|id| *id < vocabulary.tokens.len() as u64), text) else {
            return Err(files.wrong(file, "an added token has no content, or a number beyond the vocabulary"));
        };
        if text == END_OF_TURN {
            end_of_turn = u32::try_from(id).ok();
        }
        let special = token.get("special").and_then(Json::as_bool) == Some(true);
        vocabulary.put(id as usize, text.into(), -1000.0, if special { CONTROL } else { USER_DEFINED });
        Ok(())
    };
    let config = files.object("tokenizer_config.json")?.unwrap_or_default();
    for (id, token) in config.get("added_tokens_decoder").and_then(Json::as_object).into_iter().flatten() {
        add("tokenizer_config.json", id.parse().ok(), token)?;
    }
    let tokenizer = files.object("tokenizer.json")?.unwrap_or_default();
    for token in tokenizer.get("added_tokens").and_then(Json::as_array).into_iter().flatten() {
        add("tokenizer.json", token.get("id").and_then(Json::as_u64), token)?;
    }
    Ok(InternLm2 { vocabulary, end_of_turn, add_dummy_prefix })
}

/// What InternLM 2's chats end a turn with.
pub(crate) const END_OF_TURN: &str = "<|im_end|>";

/// What [`internlm2`] finds.
pub(crate) struct InternLm2 {
    pub(crate) vocabulary: Vocabulary,
    /// Number of [`END_OF_TURN`].
    pub(crate) end_of_turn: Option<u32>,
    pub(crate) add_dummy_prefix: bool,
}

/// Tokens of `added_tokens.json`.
pub(crate) fn added_tokens(files: &ModelFiles, vocabulary: &mut Vocabulary) -> Result<(), Error> {
    for (text, id) in files.object("added_tokens.json")?.unwrap_or_default() {
        let id =
            id.as_u64().ok_or_else(|| files.wrong("added_tokens.json", format!("{text:?} has no number")))?;
        vocabulary.put(id as usize, text, -1000.0, USER_DEFINED);
    }
    Ok(())
}

/// Tokens of `added_tokens_decoder` in `tokenizer_config.json`. `as_is`: with no guess at what is special.
pub(crate) fn added_decoder(
    files: &ModelFiles,
    as_is: bool,
    vocabulary: &mut Vocabulary,
) -> Result<(), Error> {
    let name = "tokenizer_config.json";
    let config = files.object(name)?.unwrap_or_default();
    let added = config.get("added_tokens_decoder").and_then(Json::as_object);
    for (id, token) in added.into_iter().flatten() {
        let (Ok(id), Some(text)) = (id.parse::<usize>(), token.get("content").and_then(Json::as_str)) else {
            return Err(files.wrong(name, "added_tokens_decoder is not numbers and tokens"));
        };
        let special = token.get("special").and_then(Json::as_bool) == Some(true);
        if special || (!as_is && looks_special(text)) {
            vocabulary.put(id, text.to_string(), -1000.0, CONTROL);
        } else {
            let text = if as_is { text.to_string() } else { text.replace('\u{2581}', " ") };
            vocabulary.put(id, text, -1000.0, USER_DEFINED);
        }
    }
    Ok(())
}

/// A piece of a SentencePiece model.
pub(crate) struct Piece {
    pub(crate) text: String,
    pub(crate) score: f32,
    kind: i32,
}

impl Piece {
    /// Its type as a token: one that a user defined is like any other.
    pub(crate) fn token_type(&self) -> i32 {
        match self.kind {
            UNKNOWN | CONTROL | UNUSED | BYTE => self.kind,
            _ => NORMAL,
        }
    }
}

/// What a SentencePiece model says, as far as a GGUF has a place for it.
pub(crate) struct SentencePiece {
    pub(crate) pieces: Vec<Piece>,
    pub(crate) is_unigram: bool,
    pub(crate) add_dummy_prefix: bool,
    pub(crate) remove_extra_whitespaces: bool,
    /// How characters are normalized, in SentencePiece's own form.
    pub(crate) charsmap: Vec<u8>,
}

/// A SentencePiece model of a directory.
pub(crate) fn open(files: &ModelFiles, name: &str) -> Result<SentencePiece, Error> {
    let bytes = files.bytes(name)?.ok_or_else(|| files.wrong(name, "not there"))?;
    parse(&bytes).ok_or_else(|| files.wrong(name, "not a SentencePiece model"))
}

/// Reads a SentencePiece `ModelProto`: `pieces` is its field 1 (`piece` 1, `score` 2, `type` 3), `trainer_spec`
/// 2 (`model_type` 3), `normalizer_spec` 3 (`precompiled_charsmap` 2, `add_dummy_prefix` 3,
/// `remove_extra_whitespaces` 4); the rest is passed over.
fn parse(bytes: &[u8]) -> Option<SentencePiece> {
    let mut found = SentencePiece {
        pieces: vec![],
        is_unigram: true,
        add_dummy_prefix: true,
        remove_extra_whitespaces: true,
        charsmap: vec![],
    };
    let mut model = Proto { bytes };
    while let Some(field) = model.next()? {
        let (number, Field::Bytes(bytes)) = field else { continue };
        let mut proto = Proto { bytes };
        match number {
            1 => {
                let mut piece = Piece { text: String::new(), score: 0.0, kind: NORMAL };
                while let Some(field) = proto.next()? {
                    match field {
                        (1, Field::Bytes(text)) => piece.text = std::str::from_utf8(text).ok()?.to_string(),
                        (2, Field::Fixed32(bits)) => piece.score = f32::from_bits(bits),
                        (3, Field::Varint(kind)) => piece.kind = i32::try_from(kind).ok()?,
                        _ => {}
                    }
                }
                found.pieces.push(piece);
            }
            2 => {
                while let Some(field) = proto.next()? {
                    if let (3, Field::Varint(kind)) = field {
                        found.is_unigram = kind == 1;
                    }
                }
            }
            3 => {
                while let Some(field) = proto.next()? {
                    match field {
                        (2, Field::Bytes(map)) => found.charsmap = map.to_vec(),
                        (3, Field::Varint(flag)) => found.add_dummy_prefix = flag != 0,
                        (4, Field::Varint(flag)) => found.remove_extra_whitespaces = flag != 0,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    (!found.pieces.is_empty()).then_some(found)
}

/// Protocol buffers as far as SentencePiece needs them.
struct Proto<'a> {
    bytes: &'a [u8],
}

enum Field<'a> {
    Varint(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
    Other,
}

impl<'a> Proto<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (now, later) = self.bytes.split_at_checked(n)?;
        self.bytes = later;
        Some(now)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    /// The next field; `Some(None)` at the end, `None` where this is no protocol buffer.
    #[allow(clippy::option_option)] // the two are two things
    fn next(&mut self) -> Option<Option<(u64, Field<'a>)>> {
        if self.bytes.is_empty() {
            return Some(None);
        }
        let tag = self.varint()?;
        let field = match tag & 7 {
            0 => Field::Varint(self.varint()?),
            1 => {
                self.take(8)?;
                Field::Other
            }
            2 => {
                let len = usize::try_from(self.varint()?).ok()?;
                Field::Bytes(self.take(len)?)
            }
            5 => Field::Fixed32(u32::from_le_bytes(self.take(4)?.try_into().ok()?)),
            _ => return None,
        };
        Some(Some((tag >> 3, field)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_a_model_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }
    }
}
