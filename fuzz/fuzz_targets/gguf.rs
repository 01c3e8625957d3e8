//! Any bytes as a GGUF file: an error or a file all of whose tensors can be read.
#![no_main]

use std::io::Write;

use libfuzzer_sys::fuzz_target;
use tenon_gguf::GgufFile;

fuzz_target!(|bytes: &[u8]| {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(bytes).expect("the bytes fit");
    let Ok(gguf) = GgufFile::open(file.path()) else { return };
    for (number, tensor) in gguf.tensors.iter().enumerate() {
        let mut out = vec![0; tensor.bytes() as usize];
        gguf.read_at(number, 0, &mut out).expect("its place was checked");
    }
    for (_, value) in gguf.metadata.iter() {
        let _ = value.to_json(10);
    }
});
