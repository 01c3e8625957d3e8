//! SentencePiece: the pieces of a `tokenizer.model` with what was added to them later.

use serde_json::Value as Json;

use super::super::arch::Model;
use super::super::files::ModelFiles;
use super::{BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Vocabulary, looks_special};
use crate::Error;

/// The vocabulary, its size that of the first of the fields that `config.json` has.
pub(crate) fn vocabulary(model: &Model<'_>, size_fields: &[&str]) -> Result<Vocabulary, Error> {
    let (files, name) = (model.files, "tokenizer.model");
    let bytes = files.bytes(name)?.ok_or_else(|| files.wrong(name, "not there"))?;
    let pieces = pieces(&bytes).ok_or_else(|| files.wrong(name, "not a SentencePiece model"))?;
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
        let kind = match piece.kind {
            UNKNOWN | CONTROL | UNUSED | BYTE => piece.kind,
            _ => NORMAL,
        };
        vocabulary.put(id, piece.text, piece.score, kind);
    }
    Ok(vocabulary)
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
    pub(crate) kind: i32,
}

/// The pieces of a SentencePiece `ModelProto` (field 1: `piece` 1, `score` 2, `type` 3); the rest is passed over.
pub(crate) fn pieces(bytes: &[u8]) -> Option<Vec<Piece>> {
    let mut pieces = vec![];
    let mut model = Proto { bytes };
    while let Some(field) = model.next()? {
        if let (1, Field::Bytes(piece)) = field {
            let mut found = Piece { text: String::new(), score: 0.0, kind: NORMAL };
            let mut proto = Proto { bytes: piece };
            while let Some(field) = proto.next()? {
                match field {
                    (1, Field::Bytes(text)) => found.text = std::str::from_utf8(text).ok()?.to_string(),
                    (2, Field::Fixed32(bits)) => found.score = f32::from_bits(bits),
                    (3, Field::Varint(kind)) => found.kind = i32::try_from(kind).ok()?,
                    _ => {}
                }
            }
            pieces.push(found);
        }
    }
    (!pieces.is_empty()).then_some(pieces)
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
            let _ = pieces(&bytes);
        }
    }
}
