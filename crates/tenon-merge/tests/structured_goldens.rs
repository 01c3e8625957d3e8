//! Adapters with structured updates: every tensor as PEFT merges it, and in 16 bits the exact result rounded once.
//!
//! `fixtures/peft-structured` holds bases, adapters, what PEFT 0.21.2's `merge_and_unload` changed, and for
//! cases in 16 bits what PEFT's code gives in float64, rounded once. `TENON_PEFT_SWEEP` may name a directory of
//! more, made by `fixtures/make_peft_structured.py --sweep`.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // a test file

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use tenon_checkpoint::{Checkpoint, Dtype, TensorSource, read_json};
use tenon_merge::{Adapter, Fate, MergeOptions, MergePlan};

fn bytes(source: &dyn TensorSource, tensor: usize) -> Vec<u8> {
    let info = &source.tensors()[tensor];
    let mut bytes = vec![0; info.bytes() as usize];
    source.read_rows(tensor, 0..info.rows(), &mut bytes).unwrap();
    bytes
}

/// Decoded without Tenon's kernels.
fn decode(dtype: Dtype, bytes: &[u8]) -> Vec<f64> {
    let two = |c: &[u8]| u16::from_le_bytes([c[0], c[1]]);
    match dtype {
        Dtype::F32 => bytes.chunks(4).map(|c| f32::from_le_bytes(c.try_into().unwrap()).into()).collect(),
        Dtype::BF16 => bytes.chunks(2).map(|c| half::bf16::from_bits(two(c)).to_f64()).collect(),
        Dtype::F16 => bytes.chunks(2).map(|c| half::f16::from_bits(two(c)).to_f64()).collect(),
        other => panic!("no golden has {other}"),
    }
}

/// How far a case is from PEFT's result relative to each tensor's largest magnitude, at worst; in 16 bits, how many
/// elements differ from the exact result.
fn check(set: &Path, name: &str, case: &Value) -> Result<f64, String> {
    let base_dir = set.join(case["base"].as_str().unwrap());
    let config: Value = read_json(&base_dir.join("config.json")).unwrap();
    let base = Arc::new(Checkpoint::open(&base_dir).unwrap());
    let adapter = Arc::new(Adapter::open(set.join(name).join("adapter")).map_err(|e| e.to_string())?);
    let kind = adapter.config().peft_type().unwrap().to_string();
    let plan = MergePlan::new(base.clone(), &config, adapter, MergeOptions::default());
    let plan = plan.map_err(|e| e.to_string())?;
    let golden = Checkpoint::open_file(set.join(name).join("merged/model.safetensors")).unwrap();
    let exact = set.join(name).join("exact.safetensors");
    let exact = exact.exists().then(|| Checkpoint::open_file(exact).unwrap());

    // The bits of an f32 transform are lost in PEFT, not here.
    let tolerance = match kind.as_str() {
        "FOURIERFT" | "C3A" | "WAVEFT" => 1e-5,
        // So are those of an f32 decomposition.
        "LORA" if name.starts_with("pissa") => 1e-5,
        _ => 2e-6,
    };
    let mut worst = 0.0f64;
    let mut changed = 0;
    for (i, planned) in plan.planned().enumerate() {
        let Some((g, golden_info)) = golden.find(&planned.info.name) else {
            if planned.fate != Fate::Copied {
                // A change may be too small for PEFT's type.
                let (b, _) = base.find(&planned.info.name).unwrap();
                let dtype = planned.info.dtype;
                let (before, after) = (decode(dtype, &bytes(&*base, b)), decode(dtype, &bytes(&plan, i)));
                if before.iter().zip(&after).any(|(b, a)| (b - a).abs() > 1e-2 * b.abs()) {
                    return Err(format!("{} is changed, which PEFT left alone", planned.info.name));
                }
            }
            continue;
        };
        changed += 1;
        assert_eq!(planned.info.dtype, golden_info.dtype);
        let found = bytes(&plan, i);
        let dtype = planned.info.dtype;
        match &exact {
            None => {
                let (found, expected) = (decode(dtype, &found), decode(dtype, &bytes(&golden, g)));
                let largest = expected.iter().fold(0.0f64, |m, v| m.max(v.abs()));
                let off =
                    found.iter().zip(&expected).fold(0.0f64, |m, (a, b)| m.max((a - b).abs())) / largest;
                // A NaN on either side must not pass for small.
                if off > tolerance || !off.is_finite() {
                    return Err(format!("{}: off by {off:e}", planned.info.name));
                }
                worst = worst.max(off);
            }
            Some(exact) => {
                let (e, _) = exact.find(&planned.info.name).unwrap();
                let expected = bytes(exact, e);
                let differ = found.chunks(2).zip(expected.chunks(2)).filter(|(a, b)| a != b).count();
                // Of ten thousand, one may lie so near to a midpoint that PEFT's own digits decide.
                let elements = expected.len() / 2;
                if differ > elements / 10_000 {
                    return Err(format!("{}: {differ} of {elements} differ", planned.info.name));
                }
            }
        }
    }
    match golden.tensors().len() {
        all if all == changed => Ok(worst),
        all => Err(format!("PEFT changed {all} tensors, of which the plan has {changed}")),
    }
}

fn check_set(set: &Path) {
    let cases: serde_json::Map<String, Value> = read_json(&set.join("structured.json")).unwrap();
    let mut failures = vec![];
    for (name, case) in &cases {
        match check(set, name, case) {
            Ok(_) if case["dtype"] != "f32" => println!("{name}: exact"),
            Ok(worst) => println!("{name}: within {worst:.1e} of PEFT"),
            Err(why) => failures.push(format!("{name}: {why}")),
        }
    }
    assert!(!cases.is_empty());
    assert!(failures.is_empty(), "{} of {} fail:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

#[test]
fn every_structured_golden() {
    check_set(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/peft-structured"));
}

#[test]
#[ignore = "needs what make_peft_structured.py --sweep makes"]
fn every_swept_golden() {
    let set = std::env::var_os("TENON_PEFT_SWEEP").expect("TENON_PEFT_SWEEP names a directory");
    check_set(&PathBuf::from(set));
}
