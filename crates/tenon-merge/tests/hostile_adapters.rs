//! Adapters of every method with something wrong in them: an error or a model, never a panic; and an
//! error that names the tensor where its shape cannot be right.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // a test file

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value, json};
use tenon_checkpoint::{Checkpoint, TensorSource, read_json};
use tenon_merge::{Adapter, MergeOptions, MergePlan};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

/// A tensor of an adapter file: name, dtype, shape, bytes.
#[derive(Debug, Clone)]
struct Tensor {
    name: String,
    dtype: String,
    shape: Vec<u64>,
    bytes: Vec<u8>,
}

fn read_tensors(file: &Path) -> Vec<Tensor> {
    let source = Checkpoint::open_file(file).unwrap();
    let tensor = |(i, info): (usize, &tenon_checkpoint::TensorInfo)| {
        let mut bytes = vec![0; info.bytes() as usize];
        source.read_rows(i, 0..info.rows(), &mut bytes).unwrap();
        Tensor { name: info.name.clone(), dtype: info.dtype.to_string(), shape: info.shape.clone(), bytes }
    };
    source.tensors().iter().enumerate().map(tensor).collect()
}

fn write_adapter(dir: &Path, config: &Value, tensors: &[Tensor]) {
    let (mut header, mut data) = (Map::new(), vec![]);
    for tensor in tensors {
        let start = data.len();
        data.extend_from_slice(&tensor.bytes);
        let entry =
            json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, data.len()]});
        header.insert(tensor.name.clone(), entry);
    }
    let header = Value::from(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.bytes());
    file.extend(data);
    std::fs::write(dir.join("adapter_model.safetensors"), file).unwrap();
    std::fs::write(dir.join("adapter_config.json"), config.to_string()).unwrap();
}

struct Case {
    name: String,
    base: Arc<Checkpoint>,
    base_config: Value,
    config: Value,
    tensors: Vec<Tensor>,
}

impl Case {
    /// Plans the merge and reads all of it.
    fn merge(&self, config: &Value, tensors: &[Tensor]) -> Result<(), String> {
        let dir = tempfile::tempdir().unwrap();
        write_adapter(dir.path(), config, tensors);
        let adapter = Arc::new(Adapter::open(dir.path()).map_err(|e| e.to_string())?);
        let plan = MergePlan::new(self.base.clone(), &self.base_config, adapter, MergeOptions::default());
        let plan = plan.map_err(|e| e.to_string())?;
        for (i, info) in plan.tensors().iter().enumerate() {
            let mut bytes = vec![0; info.bytes() as usize];
            plan.read_rows(i, 0..info.rows(), &mut bytes).map_err(|e| e.to_string())?;
        }
        Ok(())
    }
}

/// One case of each set for each kind of adapter: names up to their first hyphen, and variants.
fn cases() -> Vec<Case> {
    let mut found = vec![];
    let sets = ["peft-golden", "peft-methods", "peft-extra"].map(|set| (set, "cases.json"));
    for (set, list) in sets.into_iter().chain([("peft-structured", "structured.json")]) {
        let set = fixtures().join(set);
        let cases: Map<String, Value> = read_json(&set.join(list)).unwrap();
        for (name, case) in cases {
            let config: Value = read_json(&set.join(&name).join("adapter/adapter_config.json")).unwrap();
            let known = |m: &tenon_merge::KnownMethod| config["peft_type"] == m.peft_type;
            if !tenon_merge::methods().any(known) {
                continue;
            }
            // LoRA has many cases of one kind.
            let wanted = config["peft_type"] != "LORA"
                || [
                    "lora-embed",
                    "lora-dora-f32",
                    "lora-gpt2-dora",
                    "lora-lora-bias",
                    "conv2d-dora",
                    "experts-down",
                ]
                .contains(&name.as_str())
                || set.ends_with("peft-methods");
            let alike = |case: &&Case| case.config["peft_type"] == config["peft_type"];
            let enough = set.ends_with("peft-structured") && found.iter().filter(alike).count() > 2;
            if wanted && !enough {
                let base = set.join(case["base"].as_str().unwrap());
                found.push(Case {
                    base: Arc::new(Checkpoint::open(&base).unwrap()),
                    base_config: read_json(&base.join("config.json")).unwrap(),
                    tensors: read_tensors(&set.join(&name).join("adapter/adapter_model.safetensors")),
                    config,
                    name,
                });
            }
        }
    }
    found
}

/// The tensor cut or repeated to another shape.
fn reshaped(tensor: &Tensor, shape: Vec<u64>) -> Tensor {
    let elements: u64 = tensor.shape.iter().product();
    let width = tensor.bytes.len() / elements.max(1) as usize;
    let len = shape.iter().product::<u64>() as usize * width;
    let bytes = tensor.bytes.iter().copied().cycle().take(if tensor.bytes.is_empty() { 0 } else { len });
    Tensor { shape, bytes: bytes.collect(), ..tensor.clone() }
}

#[test]
fn wrong_shapes_are_errors_that_name_the_tensor() {
    let mut unnoticed = vec![];
    for case in cases() {
        for at in 0..case.tensors.len().min(4) {
            let tensor = &case.tensors[at];
            let mut shapes = vec![
                ("one more dimension", [&[1], &tensor.shape[..]].concat()),
                ("flat", vec![tensor.shape.iter().product()]),
            ];
            for dim in 0..tensor.shape.len() {
                let with = |extent: u64| {
                    let mut shape = tensor.shape.clone();
                    shape[dim] = extent;
                    shape
                };
                shapes.push(("one longer", with(tensor.shape[dim] + 1)));
                shapes.push(("empty", with(0)));
            }
            for (what, shape) in shapes {
                if shape == tensor.shape || tensor.bytes.is_empty() {
                    continue;
                }
                let mut tensors = case.tensors.clone();
                tensors[at] = reshaped(tensor, shape.clone());
                match case.merge(&case.config, &tensors) {
                    Ok(()) => unnoticed.push(format!("{}: {} {what}: {shape:?}", case.name, tensor.name)),
                    // Errors about a partner name that.
                    Err(error) => assert!(error.contains("base_model."), "{}: {error}", case.name),
                }
            }
        }
    }
    let rightly = [
        // Shaped as it likes, so long as its elements are as many as outputs.
        "magnitude_vector",
        // Of no use to a merged model.
        "lora_monteclora_sampler",
        "lora_velora_embed",
        // A vocabulary may grow.
        "base_layer.weight one longer",
        // Its configuration asks for two factors; the one that is there is PEFT's without CUDA.
        "boft: ",
    ];
    unnoticed.retain(|text| !rightly.iter().any(|reason| text.contains(reason)));
    assert!(unnoticed.is_empty(), "{} go unnoticed:\n{}", unnoticed.len(), unnoticed.join("\n"));
}

#[test]
fn missing_tensors_and_strange_types_do_not_panic() {
    for case in cases() {
        for at in 0..case.tensors.len().min(6) {
            let mut tensors = case.tensors.clone();
            let removed = tensors.remove(at);
            // A module whose only tensor is gone is simply not adapted.
            let module = removed.name.rsplit_once('.').unwrap().0;
            let partners = tensors.iter().any(|t| t.name.rsplit_once('.').unwrap().0 == module);
            let result = case.merge(&case.config, &tensors);
            if let Err(error) = &result {
                let understood = error.contains("lora_") || error.contains("beside it");
                assert!(partners || tensors.is_empty() || understood, "{}: {error}", case.name);
            }
            for dtype in ["I32", "U32"] {
                if removed.dtype == "F32" {
                    let mut tensors = case.tensors.clone();
                    tensors[at].dtype = dtype.into();
                    let _ = case.merge(&case.config, &tensors);
                }
            }
            // NaN, and numbers that leave every range.
            for pattern in [f32::NAN, f32::MAX, f32::MIN_POSITIVE, 0.0] {
                if removed.dtype == "F32" {
                    let mut tensors = case.tensors.clone();
                    tensors[at].bytes = pattern.to_le_bytes().repeat(removed.bytes.len() / 4);
                    let _ = case.merge(&case.config, &tensors);
                }
            }
        }
    }
}

/// Fields that no method reads, or all in the same way.
const NEUTRAL: &[&str] = &[
    "peft_type",
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_version",
    "revision",
    "layers_pattern",
    "layers_to_transform",
    "exclude_modules",
];

#[test]
fn strange_configurations_do_not_panic() {
    let strange = [
        json!(null),
        json!(0),
        json!(1),
        json!(-1),
        json!(0.5),
        json!(1_000_000_007),
        json!(u64::MAX),
        json!(1e300),
        json!(true),
        json!("x"),
        json!("(["),
        json!([]),
        json!([1, 2]),
        json!(["q_proj"]),
        json!({"q_proj": 1e300}),
        json!({"(": 3}),
        json!({"a": [true, 1]}),
    ];
    let mut seen = vec![];
    for case in cases() {
        // Each field of each method, in one case or two.
        let method = case.config["peft_type"].clone();
        seen.push(method.clone());
        if seen.iter().filter(|m| **m == method).count() > 2 {
            continue;
        }
        let fields: Vec<String> = case.config.as_object().unwrap().keys().cloned().collect();
        for field in fields.iter().filter(|field| !NEUTRAL.contains(&field.as_str())) {
            for value in &strange {
                let mut config = case.config.clone();
                config[field] = value.clone();
                let _ = case.merge(&config, &case.tensors);
            }
        }
    }
}

/// Two parameters of one module, of one shape, that no model family declares in a known order: nothing
/// tells whose factors are whose.
#[test]
fn parameters_that_only_their_order_tells_apart_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let tensor = |name: &str, shape: &[u64]| Tensor {
        name: name.into(),
        dtype: "F32".into(),
        shape: shape.into(),
        bytes: vec![0; 4 * shape.iter().product::<u64>() as usize],
    };
    let merge = |base: &[Tensor], adapter: &[Tensor], targets: [&str; 2]| {
        let config = json!({"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_parameters": targets});
        write_adapter(dir.path(), &config, base);
        let base = Arc::new(Checkpoint::open_file(dir.path().join("adapter_model.safetensors")).unwrap());
        let folder = tempfile::tempdir().unwrap();
        write_adapter(folder.path(), &config, adapter);
        let adapter = Arc::new(Adapter::open(folder.path()).unwrap());
        let plan = MergePlan::new(base, &json!({"model_type": "rwkv"}), adapter, MergeOptions::default());
        plan.map(|_| ()).map_err(|e| e.to_string())
    };
    let factors = [("mix.lora_A.weight", [1, 4]), ("mix.lora_B.weight", [4, 1])];
    let factors = ["", "base_layer."].iter().flat_map(|depth| {
        let name = move |factor: &str| format!("base_model.model.mix.{depth}{}", &factor[4..]);
        factors.map(|(factor, shape)| tensor(&name(factor), &shape))
    });
    let factors = Vec::from_iter(factors);
    let unknown = [tensor("mix.key", &[4, 4]), tensor("mix.value", &[4, 4])];
    let error = merge(&unknown, &factors, ["mix.key", "mix.value"]).unwrap_err();
    assert!(error.contains("target_parameters") && error.contains("one shape"), "{error}");
    let known = [tensor("mix.gate_up_proj", &[4, 4]), tensor("mix.down_proj", &[4, 4])];
    merge(&known, &factors, ["mix.gate_up_proj", "mix.down_proj"]).unwrap();
}

/// A saved module becomes a new tensor only where a task adds it beside the model.
#[test]
fn saved_modules_inside_the_model_need_a_home() {
    let tensor =
        |name: &str| Tensor { name: name.into(), dtype: "F32".into(), shape: vec![2], bytes: vec![0; 8] };
    let config =
        json!({"peft_type": "LORA", "r": 1, "lora_alpha": 1, "modules_to_save": ["norm2", "score", "proj"]});
    let base = tempfile::tempdir().unwrap();
    write_adapter(base.path(), &config, &[tensor("model.layers.0.norm.weight")]);
    let base = Arc::new(Checkpoint::open_file(base.path().join("adapter_model.safetensors")).unwrap());
    let merge = |name: &str| {
        let adapter = tempfile::tempdir().unwrap();
        write_adapter(adapter.path(), &config, &[tensor(&format!("base_model.model.{name}"))]);
        let adapter = Arc::new(Adapter::open(adapter.path()).unwrap());
        let plan = MergePlan::new(base.clone(), &json!({}), adapter, MergeOptions::default());
        plan.map(|plan| plan.tensors().len()).map_err(|e| e.to_string())
    };
    assert_eq!(merge("score.weight"), Ok(2));
    assert_eq!(merge("proj.0.weight"), Ok(2));
    for inside in ["model.layers.0.norm2.weight", "encoder.layers.0.norm2.weight", "model.proj.weight"] {
        let error = merge(inside).unwrap_err();
        assert!(error.contains("has no home"), "{error}");
    }
}
