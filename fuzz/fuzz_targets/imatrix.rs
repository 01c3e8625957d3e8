//! Any bytes as an importance matrix, in either format: an error or entries that are finite.
#![no_main]

use std::io::Write;

use libfuzzer_sys::fuzz_target;
use tenon_gguf::Importance;

fuzz_target!(|bytes: &[u8]| {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(bytes).expect("the bytes fit");
    if let Ok(importance) = Importance::open(file.path()) {
        assert!(!importance.is_empty());
        assert!(importance.metadata().len() >= 2);
    }
});
