//! 16-bit results are the exact result, rounded once; PEFT's own are compared beside them.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // a test file

mod rounding;

use std::path::Path;
use std::sync::Arc;

use half::{bf16, f16};
use serde_json::Value;
use tenon_checkpoint::{Checkpoint, Dtype, TensorInfo, TensorSource, read_json};
use tenon_merge::{Adapter, Fate, MergeOptions, MergePlan};

fn bits(source: &dyn TensorSource, tensor: usize) -> Vec<u16> {
    let info = &source.tensors()[tensor];
    let mut bytes = vec![0; info.bytes() as usize];
    source.read_rows(tensor, 0..info.rows(), &mut bytes).unwrap();
    bytes.chunks(2).map(|c| u16::from_le_bytes([c[0], c[1]])).collect()
}

fn floats(adapter: &Checkpoint, name: &str) -> Option<Vec<f64>> {
    let (index, info) = adapter.find(name)?;
    assert_eq!(info.dtype, Dtype::F32);
    let mut bytes = vec![0; info.bytes() as usize];
    adapter.read_rows(index, 0..info.rows(), &mut bytes).unwrap();
    Some(bytes.chunks(4).map(|c| f64::from(f32::from_le_bytes(c.try_into().unwrap()))).collect())
}

/// `W + s B A` and DoRA's scaling, by the formulas, in `f64`.
fn exact(
    base: &[f64],
    info: &TensorInfo,
    adapter: &Checkpoint,
    scale_of: impl Fn(&str, usize) -> f64,
) -> Vec<f64> {
    let module = format!("base_model.model.{}", info.name.strip_suffix(".weight").unwrap());
    let a = floats(adapter, &format!("{module}.lora_A.weight")).unwrap();
    let b = floats(adapter, &format!("{module}.lora_B.weight")).unwrap();
    let (out, input) = (info.shape[0] as usize, info.shape[1] as usize);
    let rank = a.len() / input;
    let scale = scale_of(&module, rank);
    let mut merged: Vec<f64> = (0..out * input)
        .map(|i| {
            let delta: f64 = (0..rank).map(|k| b[i / input * rank + k] * a[k * input + i % input]).sum();
            base[i] + scale * delta
        })
        .collect();
    if let Some(magnitude) = floats(adapter, &format!("{module}.lora_magnitude_vector")) {
        for (row, m) in merged.chunks_mut(input).zip(magnitude) {
            let norm = row.iter().map(|v| v * v).sum::<f64>().sqrt();
            row.iter_mut().for_each(|v| *v *= m / norm);
        }
    }
    merged
}

/// Elements, those that differ from the exact result rounded once, and by how many units at most.
#[derive(Default)]
struct Tally {
    elements: usize,
    differ: usize,
    most: i32,
}

impl Tally {
    fn add(&mut self, found: &[u16], expected: &[u16]) {
        // Bits in the order of the values they stand for.
        let order = |bits: u16| if bits & 0x8000 != 0 { -i32::from(bits & 0x7fff) } else { i32::from(bits) };
        assert_eq!(found.len(), expected.len());
        for (f, e) in found.iter().zip(expected) {
            let off = (order(*f) - order(*e)).abs();
            self.elements += 1;
            self.differ += usize::from(off > 0);
            self.most = self.most.max(off);
        }
    }
}

#[test]
fn halves_are_the_exact_result_rounded_once() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/peft-golden");
    let kjv = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/kjv-llama");
    let of = |name: &str, base: &str| {
        (
            name.to_string(),
            golden.join(base),
            golden.join(name).join("adapter"),
            Some(golden.join(name).join("merged")),
        )
    };
    let cases = [
        of("lora-bf16", "bases/llama-bfloat16"),
        of("lora-f16", "bases/llama-float16"),
        of("lora-dora-bf16", "bases/llama-bfloat16"),
        ("kjv lora".into(), kjv.join("base"), kjv.join("adapter-lora"), None),
        ("kjv dora".into(), kjv.join("base"), kjv.join("adapter-dora"), None),
    ];
    println!("{:<16} {:>9}  {:>14}  {:>14}", "", "elements", "Tenon differs", "PEFT differs");
    for (name, base_dir, adapter_dir, merged) in cases {
        let config: Value = read_json(&base_dir.join("config.json")).unwrap();
        let base = Arc::new(Checkpoint::open(&base_dir).unwrap());
        let weights = Checkpoint::open_file(adapter_dir.join("adapter_model.safetensors")).unwrap();
        let adapter = Arc::new(Adapter::open(&adapter_dir).unwrap());
        let fields = adapter.config().fields().clone();
        let scale_of = |module: &str, rank: usize| {
            let patterns = fields["alpha_pattern"].as_object().unwrap();
            let own = patterns.iter().find(|(pattern, _)| module.ends_with(pattern.as_str()));
            let alpha = own.map_or(&fields["lora_alpha"], |(_, alpha)| alpha).as_f64().unwrap();
            if fields["use_rslora"] == true { alpha / (rank as f64).sqrt() } else { alpha / rank as f64 }
        };
        let plan = MergePlan::new(base.clone(), &config, adapter, MergeOptions::default()).unwrap();
        let peft = merged.map(|dir| Checkpoint::open(dir).unwrap());
        let (mut ours, mut theirs) = (Tally::default(), Tally::default());
        for (i, planned) in plan.planned().enumerate().filter(|(_, p)| p.fate == Fate::Edited) {
            let (b, info) = base.find(&planned.info.name).unwrap();
            let half = info.dtype == Dtype::F16;
            let decode = |bits: &u16| {
                if half { f16::from_bits(*bits).to_f64() } else { bf16::from_bits(*bits).to_f64() }
            };
            let round = |v: &f64| if half { rounding::to_f16(*v) } else { rounding::to_bf16(*v) };
            let before: Vec<f64> = bits(&*base, b).iter().map(decode).collect();
            let expected: Vec<u16> = exact(&before, info, &weights, scale_of).iter().map(round).collect();
            ours.add(&bits(&plan, i), &expected);
            if let Some(peft) = &peft {
                theirs.add(&bits(peft, peft.find(&info.name).unwrap().0), &expected);
            }
        }
        assert!(ours.elements > 0);
        let share = |t: &Tally| match t.elements {
            0 => "-".into(),
            n => format!("{:.3} %", 100.0 * t.differ as f64 / n as f64),
        };
        println!("{name:<16} {:>9}  {:>14}  {:>14}", ours.elements, share(&ours), share(&theirs));
        assert!(ours.differ as f64 <= 1e-4 * ours.elements as f64, "{name}: {} differ", ours.differ);
        assert!(ours.most <= 1);
    }
}
