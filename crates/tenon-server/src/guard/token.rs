//! The secret that clients show.

use std::fmt;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use subtle::ConstantTimeEq;
use tenon::Digest;

/// A token, kept as its SHA-256: comparing takes the same time however much of a guess is right.
#[derive(Clone)]
pub struct Token(String);

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the sentence of each variant says what its fields are
pub enum TokenError {
    #[error("cannot {action} the token file {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },

    #[error("others may read the token file {} (mode {mode:03o}); chmod 600 it", path.display())]
    Open { path: PathBuf, mode: u32 },

    #[error("the token in {} has {found} characters; it must have {MIN_CHARS} to {MAX_CHARS}, none of them a space", path.display())]
    Weak { path: PathBuf, found: usize },

    #[error("the system gives no random numbers: {0}")]
    Random(String),
}

/// Shortest token: 128 bits in hexadecimal.
const MIN_CHARS: usize = 32;
/// Longest token.
const MAX_CHARS: usize = 512;

impl Token {
    /// The token with this text.
    pub fn new(text: &str) -> Self {
        Self(Digest::of(text.as_bytes()).to_string())
    }

    /// The token in a file. Where there is no file, one is made with a token drawn at random, which is
    /// given back besides, to be shown this once.
    pub fn from_file(path: &Path) -> Result<(Self, Option<String>), TokenError> {
        let io = |action| move |source| TokenError::Io { action, path: path.into(), source };
        match std::fs::read(path) {
            Ok(bytes) => {
                let mode = std::fs::metadata(path).map_err(io("examine"))?.mode() & 0o777;
                if mode & 0o077 != 0 {
                    return Err(TokenError::Open { path: path.into(), mode });
                }
                let text = String::from_utf8_lossy(&bytes);
                let text = text.trim();
                let found = text.chars().count();
                if !(MIN_CHARS..=MAX_CHARS).contains(&found) || text.contains(char::is_whitespace) {
                    return Err(TokenError::Weak { path: path.into(), found });
                }
                Ok((Self::new(text), None))
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let text = random().map_err(TokenError::Random)?;
                let mut options = std::fs::OpenOptions::new();
                let mut file =
                    options.write(true).create_new(true).mode(0o600).open(path).map_err(io("make"))?;
                writeln!(file, "{text}").and_then(|()| file.sync_all()).map_err(io("write"))?;
                Ok((Self::new(&text), Some(text)))
            }
            Err(source) => Err(io("read")(source)),
        }
    }

    /// Whether this is it.
    pub(crate) fn is(&self, shown: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(Digest::of(shown).to_string().as_bytes()).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// 256 random bits in hexadecimal.
pub(crate) fn random() -> Result<String, String> {
    let mut bytes = [0u8; 32];
    getrandom::fill(&mut bytes).map_err(|e| e.to_string())?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_that_is_not_there_is_made_and_one_that_others_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let (made, text) = Token::from_file(&path).unwrap();
        let text = text.expect("it is new");
        assert!(made.is(text.as_bytes()) && !made.is(b"") && !made.is(&text.as_bytes()[..63]));
        let (read, again) = Token::from_file(&path).unwrap();
        assert!(read.is(text.as_bytes()) && again.is_none());
        assert_eq!(format!("{read:?}"), "Token(..)");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(Token::from_file(&path), Err(TokenError::Open { mode: 0o640, .. })));
        std::fs::remove_file(&path).unwrap();
        for weak in ["", "short", &"a b".repeat(20), &"x".repeat(513)] {
            std::fs::write(&path, weak).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            assert!(matches!(Token::from_file(&path), Err(TokenError::Weak { .. })), "{weak:?}");
        }
    }
}
