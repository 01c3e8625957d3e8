//! Threads, tile sizes and instructions do not change a byte.
#![allow(clippy::unwrap_used)] // a test file

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tenon::{Digest, Level, Merge};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

/// SHA-256 of every file of a merge, read back from the disk.
fn digests(merge: Merge, out: &Path) -> BTreeMap<String, Digest> {
    merge.plan().unwrap().run(&()).unwrap();
    let files = std::fs::read_dir(out).unwrap().map(|entry| {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        (name, Digest::of(&std::fs::read(path).unwrap()))
    });
    let digests = files.collect();
    std::fs::remove_dir_all(out).unwrap();
    digests
}

#[test]
fn the_whole_directory_is_the_same_at_any_threads_tiles_and_level() {
    let home = tempfile::tempdir().unwrap();
    let cases = [
        ("kjv-llama/base", "kjv-llama/adapter-lora"),
        ("kjv-llama/base", "kjv-llama/adapter-dora"),
        ("peft-golden/bases/gpt2-float32", "peft-golden/lora-gpt2-dora/adapter"),
        ("peft-golden/bases/llama-float16", "peft-golden/lora-f16/adapter"),
        ("peft-golden/bases/mixtral-float32", "peft-golden/lora-mixtral-target-parameters/adapter"),
    ];
    for (base, adapter) in cases {
        let out = home.path().join("out");
        let merge = || Merge::new(fixtures().join(base), fixtures().join(adapter), &out);
        let expected = digests(merge().threads(1).level(Level::Scalar), &out);
        assert!(expected.contains_key("tenon.json"));
        for threads in [1, 2, 7] {
            for tile_bytes in [100, 5_000, 1 << 20] {
                for level in Level::available() {
                    let found = digests(merge().threads(threads).tile_bytes(tile_bytes).level(level), &out);
                    assert_eq!(
                        found, expected,
                        "{adapter}: {threads} threads, {tile_bytes} bytes, {level:?}"
                    );
                }
            }
        }
    }
}
