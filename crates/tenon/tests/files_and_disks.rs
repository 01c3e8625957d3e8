//! What a merge does with the files around it: caches of links, foreign dtypes, inputs that change,
//! disks that refuse.
#![allow(clippy::unwrap_used)] // a test file

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use tenon::{CheckpointError, Error, Merge, Observer};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/kjv-llama").join(name)
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_hub_snapshot_of_links_is_a_base_that_knows_its_name() {
    let home = tempfile::tempdir().unwrap();
    let repository = home.path().join("hub/models--tenon--kjv-llama");
    let snapshot = repository.join("snapshots/0123abc");
    std::fs::create_dir_all(&snapshot).unwrap();
    copy(&fixture("base"), &repository.join("blobs"));
    for name in names(&repository.join("blobs")) {
        std::os::unix::fs::symlink(Path::new("../../blobs").join(&name), snapshot.join(&name)).unwrap();
    }
    let (linked, plain) = (home.path().join("linked"), home.path().join("plain"));
    let merged = Merge::new(&snapshot, fixture("adapter-lora"), &linked).plan().unwrap().run(&()).unwrap();
    Merge::new(fixture("base"), fixture("adapter-lora"), &plain).plan().unwrap().run(&()).unwrap();
    assert_eq!(merged.manifest.base.repository.as_deref(), Some("tenon/kjv-llama"));
    assert_eq!(merged.manifest.base.revision.as_deref(), Some("0123abc"));
    assert_eq!(names(&linked), names(&plain));
    for name in names(&plain).iter().filter(|name| *name != "tenon.json") {
        assert!(linked.join(name).symlink_metadata().unwrap().is_file(), "{name} is a file of its own");
        assert_eq!(std::fs::read(linked.join(name)).unwrap(), std::fs::read(plain.join(name)).unwrap());
    }
}

/// Adds a tensor to a safetensors file, at its end.
fn add_tensor(path: &Path, name: &str, dtype: &str, shape: &[u64], data: &[u8]) {
    let bytes = std::fs::read(path).unwrap();
    let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + n]).unwrap();
    let end = bytes.len() - 8 - n;
    header[name] = json!({ "dtype": dtype, "shape": shape, "data_offsets": [end, end + data.len()] });
    let header = header.to_string().into_bytes();
    let parts = [&(header.len() as u64).to_le_bytes(), &header[..], &bytes[8 + n..], data];
    std::fs::write(path, parts.concat()).unwrap();
}

#[test]
fn tensors_of_any_dtype_pass_through() {
    let home = tempfile::tempdir().unwrap();
    let (base, out) = (home.path().join("base"), home.path().join("out"));
    copy(&fixture("base"), &base);
    let weights = base.join("model-00002-of-00003.safetensors");
    let index_path = base.join("model.safetensors.index.json");
    let mut index: Value = serde_json::from_slice(&std::fs::read(&index_path).unwrap()).unwrap();
    let bytes: Vec<u8> = (0..240u8).collect();
    let foreign = [
        ("F8_E4M3", 240),
        ("F8_E5M2", 240),
        ("I64", 30),
        ("I32", 60),
        ("U16", 120),
        ("BOOL", 240),
        ("F64", 30),
        ("C64", 30),
    ];
    for (dtype, n) in foreign {
        let name = format!("foreign.{dtype}");
        add_tensor(&weights, &name, dtype, &[n / 10, 10], &bytes);
        index["weight_map"][name] = json!("model-00002-of-00003.safetensors");
    }
    std::fs::write(index_path, index.to_string()).unwrap();
    Merge::new(&base, fixture("adapter-lora"), &out).plan().unwrap().run(&()).unwrap();
    let merged = std::fs::read(out.join("model.safetensors")).unwrap();
    let n = u64::from_le_bytes(merged[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&merged[8..8 + n]).unwrap();
    for (dtype, n_elements) in foreign {
        let entry = &header[format!("foreign.{dtype}")];
        assert_eq!((&entry["dtype"], &entry["shape"]), (&json!(dtype), &json!([n_elements / 10, 10])));
        let at = entry["data_offsets"][0].as_u64().unwrap() as usize + 8 + n;
        assert_eq!(&merged[at..at + 240], &bytes, "{dtype}");
    }
}

/// Does something to the world at the first progress.
struct Meddler<F>(F, AtomicBool);

impl<F: Fn() + Sync> Observer for Meddler<F> {
    fn advanced(&self, _: u64) {
        if !self.1.swap(true, Ordering::SeqCst) {
            (self.0)();
        }
    }
}

#[test]
fn a_base_that_changes_while_it_is_read_gives_no_model() {
    type Meddle = fn(&Path);
    let append: Meddle = |path| {
        use std::io::Write;
        std::fs::OpenOptions::new().append(true).open(path).unwrap().write_all(b"more").unwrap();
    };
    let touch: Meddle = |path| {
        let later = std::time::SystemTime::now() + std::time::Duration::from_secs(5);
        std::fs::File::options().append(true).open(path).unwrap().set_modified(later).unwrap();
    };
    let cut: Meddle = |path| {
        std::fs::File::options().write(true).open(path).unwrap().set_len(100_000).unwrap();
    };
    for (what, meddle) in [("append", append), ("touch", touch), ("cut", cut)] {
        for victim in ["base/model-00002-of-00003.safetensors", "adapter/adapter_model.safetensors"] {
            let home = tempfile::tempdir().unwrap();
            copy(&fixture("base"), &home.path().join("base"));
            copy(&fixture("adapter-lora"), &home.path().join("adapter"));
            let merge =
                Merge::new(home.path().join("base"), home.path().join("adapter"), home.path().join("out"));
            let plan = merge.plan().unwrap();
            let victim = home.path().join(victim);
            match plan.run(&Meddler(|| meddle(&victim), AtomicBool::new(false))) {
                Err(Error::Checkpoint(CheckpointError::Changed { path })) => assert_eq!(path, victim),
                // A cut file ends before its tensors do.
                Err(Error::Checkpoint(CheckpointError::Io { path, .. })) if what == "cut" => {
                    assert_eq!(path, victim);
                }
                other => panic!("{what} {}: {:?}", victim.display(), other.map(|m| m.out)),
            }
            assert_eq!(names(home.path()), ["adapter", "base"], "{what}");
        }
    }
}
