//! Several adapters combined and merged, against what PEFT's `add_weighted_adapter` makes of them.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // a test file

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};
use tenon_checkpoint::{Checkpoint, Dtype, TensorSource, read_json};
use tenon_merge::{Adapter, Combination, Combined, Error, Fate, How, MajoritySign, MergeOptions, MergePlan};

fn set() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/peft-combine")
}

fn open(name: &str) -> Arc<Adapter> {
    Arc::new(Adapter::open(set().join(name)).unwrap())
}

fn combine(names: &[(&str, f64)], what: &Combination) -> Result<Combined, Error> {
    Combined::new(names.iter().map(|(name, weight)| (open(name), *weight)).collect(), what)
}

fn plain(how: How) -> Combination {
    Combination { how, density: 1.0, majority_sign: MajoritySign::Total, rank: None, seed: 0 }
}

fn values(source: &dyn TensorSource, tensor: usize) -> Vec<f64> {
    let info = &source.tensors()[tensor];
    assert_eq!(info.dtype, Dtype::F32);
    let mut bytes = vec![0; info.bytes() as usize];
    source.read_rows(tensor, 0..info.rows(), &mut bytes).unwrap();
    bytes.chunks(4).map(|c| f32::from_le_bytes(c.try_into().unwrap()).into()).collect()
}

fn all_values(source: &dyn TensorSource) -> Vec<Vec<f64>> {
    (0..source.tensors().len()).map(|tensor| values(source, tensor)).collect()
}

fn merge(combined: Combined) -> MergePlan {
    let base = Arc::new(Checkpoint::open(set().join("base")).unwrap());
    let config: Value = read_json(&set().join("base/config.json")).unwrap();
    let adapter = Arc::new(Adapter::combined(Arc::new(combined)));
    MergePlan::new(base, &config, adapter, MergeOptions::default()).unwrap()
}

#[test]
fn every_case_is_as_peft_makes_it() {
    let cases: Map<String, Value> = read_json(&set().join("cases.json")).unwrap();
    for (name, case) in &cases {
        let list: Vec<(String, f64)> = serde_json::from_value(case["adapters"].clone()).unwrap();
        let list: Vec<_> = list.iter().map(|(name, weight)| (name.as_str(), *weight)).collect();
        let what = Combination {
            how: case["how"].as_str().unwrap().parse().unwrap(),
            density: case.get("density").map_or(1.0, |d| d.as_f64().unwrap()),
            majority_sign: match case.get("majority_sign").map(|s| s.as_str().unwrap()) {
                Some("frequency") => MajoritySign::Frequency,
                _ => MajoritySign::Total,
            },
            rank: case.get("rank").map(|r| r.as_u64().unwrap()),
            seed: 0,
        };
        let plan = merge(combine(&list, &what).unwrap());
        let golden = Checkpoint::open_file(set().join(format!("{name}.safetensors"))).unwrap();
        let edited: Vec<_> =
            plan.planned().filter(|p| p.fate != Fate::Copied).map(|p| p.info.name.clone()).collect();
        let mut changed: Vec<_> = golden.tensors().iter().map(|t| t.name.clone()).collect();
        changed.sort_unstable_by_key(|name| edited.iter().position(|e| e == name));
        assert_eq!(edited, changed, "{name}");
        for (g, info) in golden.tensors().iter().enumerate() {
            let i = plan.tensors().iter().position(|t| t.name == info.name).unwrap();
            let (found, expected) = (values(&plan, i), values(&golden, g));
            let largest = expected.iter().fold(0.0f64, |m, v| m.max(v.abs()));
            let off = found.iter().zip(&expected).fold(0.0f64, |m, (a, b)| m.max((a - b).abs())) / largest;
            println!("{name}: {} within {off:.1e}", info.name);
            assert!(off < 2e-6, "{name}: {} is off by {off:e}", info.name);
        }
    }
    assert!(cases.len() >= 20);
}

#[test]
fn dare_keeps_its_share_and_the_same_each_time() {
    let what = Combination { density: 0.3, seed: 7, ..plain(How::DareLinear) };
    let list = [("a", 0.7), ("b", 0.4)];
    let file = combine(&list, &what).unwrap();
    let first = all_values(&file);
    assert_eq!(first, all_values(&combine(&list, &what).unwrap()));
    let other = combine(&list, &Combination { seed: 8, ..what.clone() }).unwrap();
    assert_ne!(first, all_values(&other));
    // up_proj is b's alone, so that every element is kept or 0.
    let b = Checkpoint::open_file(set().join("b/adapter_model.safetensors")).unwrap();
    let mut shares = vec![];
    for (i, info) in file.tensors().iter().enumerate().filter(|(_, t)| t.name.contains("up_proj")) {
        let factor = (0.4f64 * 4.0 / 3.0).sqrt() / 0.3;
        let original = values(&b, b.find(&info.name).unwrap().0);
        for (value, original) in values(&file, i).iter().zip(&original) {
            assert!(*value == 0.0 || (value / (original * factor) - 1.0).abs() < 1e-6);
            shares.push(f64::from(u8::from(*value != 0.0)));
        }
    }
    let share = shares.iter().sum::<f64>() / shares.len() as f64;
    assert!((share - 0.3).abs() < 0.15, "{share}");
}

#[test]
fn what_cannot_be_combined_says_why() {
    let error = |list: &[(&str, f64)], what: &Combination| combine(list, what).unwrap_err().to_string();
    let ranks = error(&[("a", 1.0), ("d", 1.0)], &plain(How::Linear));
    assert!(ranks.contains("another rank") && ranks.contains("cat, svd"), "{ranks}");
    let density = error(&[("a", 1.0)], &Combination { density: 0.0, ..plain(How::Ties) });
    assert!(density.contains("density is 0"), "{density}");
    assert!(error(&[("a", f64::NAN)], &plain(How::Cat)).contains("weight"));
    assert!(error(&[], &plain(How::Cat)).contains("no adapter"));
    for (other, why) in [("lora-dora-f32", "DoRA"), ("loha", "LOHA"), ("lora-modules-to-save", "whole")] {
        let other = format!("../peft-golden/{other}/adapter");
        let error = error(&[("a", 1.0), (&other, 1.0)], &plain(How::Cat));
        assert!(error.contains(why), "{error}");
    }
    assert!("ties_qr".parse::<How>().unwrap_err().to_string().contains("magnitude_prune_svd"));
}
