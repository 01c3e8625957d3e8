//! A plan of every method yields the same bytes with any instructions and however its rows are cut.
#![allow(clippy::unwrap_used)] // a test file

use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};
use tenon_checkpoint::{Checkpoint, TensorSource, read_json};
use tenon_merge::kernel::Level;
use tenon_merge::{Adapter, MergeOptions, MergePlan};

fn read(plan: &MergePlan, tensor: usize, step: u64) -> Vec<u8> {
    let info = &plan.tensors()[tensor];
    let mut bytes = vec![0; info.bytes() as usize];
    let step = step * info.row_block;
    for row in (0..info.rows()).step_by(step as usize) {
        let end = info.rows().min(row + step);
        let part = (row * info.row_bytes()) as usize..(end * info.row_bytes()) as usize;
        plan.read_rows(tensor, row..end, &mut bytes[part]).unwrap();
    }
    bytes
}

#[test]
fn levels_and_tiles_change_nothing() {
    let mut compared = 0;
    let sets = ["peft-golden", "peft-methods"].map(|set| (set, "cases.json"));
    for (set, list) in sets.into_iter().chain([("peft-structured", "structured.json")]) {
        let set = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(set);
        let cases: Map<String, Value> = read_json(&set.join(list)).unwrap();
        for (name, case) in cases {
            let base = set.join(case["base"].as_str().unwrap());
            let config: Value = read_json(&base.join("config.json")).unwrap();
            let plan = |level: Level| {
                let adapter = Arc::new(Adapter::open(set.join(&name).join("adapter")).unwrap());
                let base = Arc::new(Checkpoint::open(&base).unwrap());
                let options = MergeOptions { level, ..MergeOptions::default() };
                MergePlan::new(base, &config, adapter, options)
            };
            let known = |m: &tenon_merge::KnownMethod| {
                let config: Value = read_json(&set.join(&name).join("adapter/adapter_config.json")).unwrap();
                config["peft_type"] == m.peft_type
            };
            if !tenon_merge::methods().any(known) {
                continue;
            }
            let first = plan(Level::Scalar).unwrap();
            for level in Level::available() {
                let plan = plan(level).unwrap();
                for tensor in 0..plan.tensors().len() {
                    let expected = read(&first, tensor, 1 << 40);
                    for step in [1, 3, 1 << 40] {
                        assert!(
                            read(&plan, tensor, step) == expected,
                            "{name}: {} differs at {level:?}, {step} rows at a time",
                            plan.tensors()[tensor].name
                        );
                        compared += 1;
                    }
                }
            }
        }
    }
    assert!(compared > 1000);
}
