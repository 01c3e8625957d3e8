//! Small text files from a model directory, read with a limit.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::Error;

/// No configuration, index or tokenizer text that Tenon parses may be larger.
pub const MAX_JSON_BYTES: u64 = 64 << 20;

/// Reads a UTF-8 file of at most [`MAX_JSON_BYTES`].
pub fn read_text(path: &Path) -> Result<String, Error> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let len = file.metadata().map_err(Error::io("examine", path))?.len();
    if len > MAX_JSON_BYTES {
        return Err(Error::TooLarge { path: path.into(), found: len, limit: MAX_JSON_BYTES });
    }
    let mut bytes = Vec::with_capacity(len as usize);
    // `take` also bounds what a device or a growing file could yield.
    file.take(MAX_JSON_BYTES).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    String::from_utf8(bytes).map_err(|_| Error::NotText { path: path.into() })
}

/// Reads and parses a JSON file of at most [`MAX_JSON_BYTES`].
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let text = read_text(path)?;
    // A byte order mark is not JSON, but editors leave it there.
    serde_json::from_str(text.trim_start_matches('\u{feff}'))
        .map_err(|source| Error::Json { path: path.into(), source })
}
