//! Every golden that PEFT made: same tensors, same values, untouched tensors the same bytes.
//!
//! The `fixtures/peft-*` hold bases, adapters and what PEFT 0.21.2's
//! `merge_and_unload` made of them.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // a test file

mod rounding;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use tenon_checkpoint::{Checkpoint, Dtype, TensorInfo, TensorSource, read_json};
use tenon_merge::{Adapter, Fate, MergeOptions, MergePlan};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

fn bytes(source: &dyn TensorSource, tensor: usize) -> Vec<u8> {
    let info = &source.tensors()[tensor];
    let mut bytes = vec![0; info.bytes() as usize];
    source.read_rows(tensor, 0..info.rows(), &mut bytes).unwrap();
    bytes
}

/// Decoded without Tenon's kernels.
fn decode(info: &TensorInfo, bytes: &[u8]) -> Vec<f64> {
    let two = |c: &[u8]| u16::from_le_bytes([c[0], c[1]]);
    match info.dtype {
        Dtype::F32 => bytes.chunks(4).map(|c| f32::from_le_bytes(c.try_into().unwrap()).into()).collect(),
        Dtype::BF16 => bytes.chunks(2).map(|c| half::bf16::from_bits(two(c)).to_f64()).collect(),
        Dtype::F16 => bytes.chunks(2).map(|c| half::f16::from_bits(two(c)).to_f64()).collect(),
        Dtype::F64 => bytes.chunks(8).map(|c| f64::from_le_bytes(c.try_into().unwrap())).collect(),
        other => panic!("no golden has {other}"),
    }
}

/// Where the set has what PEFT makes of the case in `f64` throughout: that value rounded once.
fn check_exact(case: &Path, plan: &MergePlan, theirs_name: impl Fn(&str) -> String) -> Result<(), String> {
    if !case.join("exact.safetensors").exists() {
        return Ok(());
    }
    let exact = Checkpoint::open_file(case.join("exact.safetensors")).unwrap();
    for (e, info) in exact.tensors().iter().enumerate() {
        let Some(i) = plan.tensors().iter().position(|t| theirs_name(&t.name) == info.name) else {
            return Err(format!("exact.safetensors has {}, the plan does not", info.name));
        };
        let (found, expected) = (bytes(plan, i), decode(info, &bytes(&exact, e)));
        let rounded: Vec<u8> = match plan.tensors()[i].dtype {
            Dtype::F32 => expected.iter().flat_map(|v| (*v as f32).to_le_bytes()).collect(),
            Dtype::BF16 => expected.iter().flat_map(|v| rounding::to_bf16(*v).to_le_bytes()).collect(),
            Dtype::F16 => expected.iter().flat_map(|v| rounding::to_f16(*v).to_le_bytes()).collect(),
            other => panic!("no golden has {other}"),
        };
        let size = found.len() / expected.len().max(1);
        let differ = found.chunks(size).zip(rounded.chunks(size)).filter(|(a, b)| a != b).count();
        // The order of a sum may move an f64 across the middle between two results, once in a great while.
        if differ > expected.len() / 1000 {
            return Err(format!(
                "{}: {differ} of {} are not the exact value rounded",
                info.name,
                expected.len()
            ));
        }
    }
    Ok(())
}

fn check_case(set: &Path, name: &str, base: &str) -> Result<f64, String> {
    let base_dir = set.join(base);
    let config: Value = read_json(&base_dir.join("config.json")).unwrap();
    let base = Arc::new(Checkpoint::open(&base_dir).unwrap());
    let adapter = Arc::new(Adapter::open(set.join(name).join("adapter")).unwrap());
    let plan =
        MergePlan::new(base.clone(), &config, adapter, MergeOptions::default()).map_err(|e| e.to_string())?;
    let golden = Checkpoint::open(set.join(name).join("merged")).unwrap();

    // PEFT saves the model's class, so a base that was saved bare gets a prefix; Tenon keeps its names.
    let prefix = match plan.tensors().first().map(|t| t.name.as_str()) {
        Some(first) if golden.find(first).is_none() => {
            let longer = golden.tensors().iter().find_map(|t| t.name.strip_suffix(first)).unwrap_or_default();
            if longer.ends_with('.') { longer } else { "" }
        }
        _ => "",
    };
    let theirs_name = |name: &str| format!("{prefix}{name}");

    let mut ours: Vec<_> = plan.tensors().iter().map(|t| theirs_name(&t.name)).collect();
    let mut theirs: Vec<_> = golden.tensors().iter().map(|t| t.name.clone()).collect();
    ours.sort_unstable();
    theirs.sort_unstable();
    if ours != theirs {
        let extra: Vec<_> = ours.iter().filter(|n| !theirs.contains(n)).collect();
        let missing: Vec<_> = theirs.iter().filter(|n| !ours.contains(n)).collect();
        return Err(format!("tensors differ: ours alone {extra:?}, PEFT's alone {missing:?}"));
    }
    let mut worst = 0.0f64;
    for (i, planned) in plan.planned().enumerate() {
        let (g, golden_info) = golden.find(&theirs_name(&planned.info.name)).unwrap();
        if golden_info.shape != planned.info.shape {
            return Err(format!(
                "{}: shape {:?}, PEFT's {:?}",
                planned.info.name, planned.info.shape, golden_info.shape
            ));
        }
        let (found, expected) = (bytes(&plan, i), bytes(&golden, g));
        if planned.fate == Fate::Copied {
            if found != expected {
                return Err(format!("{} is copied, but PEFT changes it", planned.info.name));
            }
            continue;
        }
        let (found, expected) = (decode(planned.info, &found), decode(golden_info, &expected));
        let largest = expected.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        let off = found.iter().zip(&expected).fold(0.0f64, |m, (a, b)| m.max((a - b).abs())) / largest;
        // A NaN on either side must not pass for small.
        assert!(off.is_finite(), "{name}: {}", planned.info.name);
        let tolerance = match planned.info.dtype {
            // PEFT rounds the update to the adapter's narrower type before it adds it; Tenon does not.
            Dtype::F32 if plan.adapter().tensors().iter().any(|t| t.dtype == Dtype::BF16) => 1.0 / 128.0,
            Dtype::F32 => match peft_type(set, name).as_str() {
                "LORA" => 1e-6,
                // PEFT transforms in f32.
                "FOURIERFT" | "C3A" | "WAVEFT" => 1e-5,
                _ => 2e-6,
            },
            // Two roundings of PEFT's against one of ours: an ulp of the largest value and a bit.
            Dtype::BF16 => 1.0 / 128.0,
            _ => 1.0 / 1024.0,
        };
        if off > tolerance {
            return Err(format!("{}: off by {off:e}", planned.info.name));
        }
        if planned.info.dtype == Dtype::F32 {
            worst = worst.max(off);
        }
    }
    check_exact(&set.join(name), &plan, theirs_name)?;
    let golden_config: Value = read_json(&set.join(name).join("merged/config.json")).unwrap();
    for field in
        ["vocab_size", "num_hidden_layers", "tie_word_embeddings", "layer_types", "architectures", "id2label"]
    {
        if plan.config().get(field) != golden_config.get(field) {
            let (a, b) = (plan.config().get(field), golden_config.get(field));
            return Err(format!("config.json: {field} is {a:?}, PEFT's {b:?}"));
        }
    }
    Ok(worst)
}

/// The sets of goldens: directories of `fixtures` with a `cases.json` and a `bases`; or the one that
/// `TENON_GOLDENS` names, such as what `fixtures/make_peft_methods.py --stress` makes.
fn sets() -> Vec<PathBuf> {
    if let Some(set) = std::env::var_os("TENON_GOLDENS") {
        return vec![set.into()];
    }
    let dirs = std::fs::read_dir(fixtures()).unwrap().map(|entry| entry.unwrap().path());
    let mut sets: Vec<_> =
        dirs.filter(|d| d.join("cases.json").exists() && d.join("bases").exists()).collect();
    sets.sort_unstable();
    sets
}

fn peft_type(set: &Path, name: &str) -> String {
    let config: Value = read_json(&set.join(name).join("adapter/adapter_config.json")).unwrap();
    config["peft_type"].as_str().unwrap().to_string()
}

/// Checks the cases whose adapter is of a method that is `wanted`.
fn check(wanted: impl Fn(&str) -> bool) {
    let mut failures = vec![];
    let mut checked = 0;
    for set in sets() {
        let cases: serde_json::Map<String, Value> = read_json(&set.join("cases.json")).unwrap();
        for (name, case) in cases.iter().filter(|(name, _)| wanted(&peft_type(&set, name))) {
            checked += 1;
            match check_case(&set, name, case["base"].as_str().unwrap()) {
                Ok(worst) => println!("{name}: within {worst:.1e} of PEFT"),
                Err(why) => failures.push(format!("{name}: {why}")),
            }
        }
    }
    assert!(checked > 0 || std::env::var_os("TENON_GOLDENS").is_some());
    assert!(failures.is_empty(), "{} of {checked} fail:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn every_lora_golden() {
    check(|peft_type| peft_type == "LORA");
}

#[test]
fn every_golden_of_every_other_method() {
    let known = |wanted: &str| tenon_merge::methods().any(|m| m.peft_type == wanted && m.refusal().is_none());
    check(|peft_type| peft_type != "LORA" && known(peft_type));
}
