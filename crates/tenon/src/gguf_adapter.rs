//! LoRA adapters in GGUF, as llama.cpp's `convert_lora_to_gguf.py` writes them, read as the PEFT adapter
//! that they were made from.
//!
//! Of a tensor `X` of the model's GGUF, `X.lora_a` is `[r, in]` and `X.lora_b` `[out, r]`, each with an axis of
//! experts before where `X` has one; `token_embd.weight.lora_a` is turned over, `[vocabulary, r]`. The scale is
//! `adapter.lora.alpha / r`, 1 without alpha (`llama-adapter.cpp`, build 10488). What the converter did to the
//! model's rows it did to those of `B`; [`Provenance`] says where they were. Where a tensor of the model was cut
//! into several, their factors go beside each other:
//!
//! ```text
//! [ B_q A_q ]   [ B_q  0   0  ] [ A_q ]
//! [ B_k A_k ] = [  0  B_k  0  ] [ A_k ]
//! [ B_v A_v ]   [  0   0  B_v ] [ A_v ]
//! ```
//!
//! A norm may come whole; llama.cpp leaves it out, mergekit, which writes such adapters, means it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Map, json};
use tenon_adapters::Error as AdapterError;
use tenon_checkpoint::{Checkpoint, Dtype, Error as CheckpointError, Rows, TensorInfo, TensorSource};
use tenon_gguf::quant::{Level, decode};
use tenon_gguf::{GgmlType, GgufFile, ModelFiles, Origins, Provenance, Value};
use tenon_merge::{Adapter, AdapterConfig};

use crate::Error;
use crate::base::Base;

/// What a GGUF adapter's header says of it.
pub(crate) struct Facts {
    pub(crate) architecture: String,
    /// None and 0 both stand for a scale of 1.
    pub(crate) alpha: Option<f64>,
    /// The rank that most pairs have.
    pub(crate) rank: Option<u64>,
    /// The tensors that are adapted.
    pub(crate) tensors: BTreeSet<String>,
}

/// Whether a GGUF file is an adapter.
pub(crate) fn is_adapter(file: &GgufFile) -> bool {
    file.metadata.text("general.type") == Some("adapter")
}

/// Reads the header of an adapter; an error says what is not understood in it.
pub(crate) fn facts(path: &Path, file: &GgufFile) -> Result<Facts, Error> {
    let field = |field: &str, found: String, expected: &str| AdapterError::Field {
        path: path.into(),
        field: field.into(),
        found,
        expected: expected.into(),
    };
    let text = |key: &str| file.metadata.text(key).map(str::to_string);
    let kind = text("adapter.type");
    if kind.as_deref() != Some("lora") {
        let found = kind.unwrap_or_else(|| "absent".into());
        return Err(field("adapter.type", found, "lora").into());
    }
    if file.metadata.get("adapter.alora.invocation_tokens").is_some() {
        let expected =
            "nothing: an activated LoRA (aLoRA) acts only after certain tokens, so no fixed weights equal it";
        return Err(field("adapter.alora.invocation_tokens", "present".into(), expected).into());
    }
    let alpha = match file.metadata.get("adapter.lora.alpha") {
        None => None,
        Some(Value::F32(alpha)) if alpha.is_finite() => Some(f64::from(*alpha)).filter(|a| *a != 0.0),
        Some(other) => {
            let found = other.to_json(4).to_string();
            return Err(field("adapter.lora.alpha", found, "a finite number of 32 bits").into());
        }
    };
    let mut ranks: BTreeMap<u64, usize> = BTreeMap::new();
    let mut tensors = BTreeSet::new();
    for tensor in &file.tensors {
        if let Some(adapted) = tensor.name.strip_suffix(".lora_b") {
            *ranks.entry(tensor.row_len()).or_default() += 1;
            tensors.insert(adapted.to_string());
        }
    }
    let rank = ranks.iter().max_by_key(|(_, count)| **count).map(|(rank, _)| *rank);
    let architecture = text("general.architecture").unwrap_or_default();
    Ok(Facts { architecture, alpha, rank, tensors })
}

/// Opens an adapter for a base. Also gives what a person should know of it.
pub(crate) fn open(path: &Path, base: &Base) -> Result<(Adapter, Vec<String>), Error> {
    let file = Arc::new(GgufFile::open(path)?);
    let facts = facts(path, &file)?;
    let model =
        Provenance::plan(base.config(), base.tensors(), &ModelFiles::directory(base.checkpoint.dir()))?;
    let base = base.tensors();
    if facts.architecture != model.architecture() {
        return Err(AdapterError::Field {
            path: path.into(),
            field: "general.architecture".into(),
            found: facts.architecture,
            expected: format!("{}, as llama.cpp calls this base", model.architecture()),
        }
        .into());
    }
    let numbers =
        file.tensors.iter().enumerate().map(|(number, tensor)| (tensor.name.as_str(), number)).collect();
    let mut reading = Reading { path, file: &file, numbers, base, modules: BTreeMap::new(), norms: vec![] };
    for (number, tensor) in file.tensors.iter().enumerate() {
        reading.tensor(number, tensor.name.as_str(), &model)?;
    }
    let Reading { modules, norms, .. } = reading;
    let mut factors = Factors { file: file.clone(), infos: vec![], made_of: vec![], last: Mutex::default() };
    let mut ranks = BTreeMap::new();
    for (source, module) in &modules {
        let info = &base[*source];
        let name = module.name.unwrap_or_else(|| info.name.strip_suffix(".weight").unwrap_or(&info.name));
        factors.module(name, info, module);
        let rank = module.rank * module.pieces.len() as u64;
        // Factors beside each other keep the scale that each had.
        let scale = facts.alpha.map_or(1.0, |alpha| alpha / module.rank as f64);
        ranks.insert(name.to_string(), (rank, scale * rank as f64));
    }
    for (source, tensor, plus) in norms {
        let info = TensorInfo::new(base[source].name.clone(), Dtype::F32, base[source].shape.clone());
        factors.push(info, MadeOf::Less { tensor, plus });
    }
    let notes = vec![format!(
        "a GGUF adapter of llama.cpp for {}, of {} modules, read as PEFT's",
        facts.architecture,
        ranks.len()
    )];
    let config = AdapterConfig::translated(PathBuf::from(path), fields(&ranks));
    let weights = Arc::new(Checkpoint::foreign_file(path)?);
    Ok((Adapter::translated(path, config, Arc::new(factors), weights), notes))
}

/// The `adapter_config.json` that PEFT would have written for modules of these ranks and alphas.
fn fields(ranks: &BTreeMap<String, (u64, f64)>) -> Map<String, serde_json::Value> {
    let targets: BTreeSet<&str> =
        ranks.keys().map(|module| module.rsplit('.').next().unwrap_or(module)).collect();
    let first = ranks.values().next().copied().unwrap_or((1, 1.0));
    let mut fields = Map::new();
    fields.insert("peft_type".into(), "LORA".into());
    fields.insert("r".into(), first.0.into());
    fields.insert("lora_alpha".into(), json!(first.1));
    fields.insert("target_modules".into(), targets.into_iter().collect());
    let others = || ranks.iter().filter(|(_, own)| **own != first);
    if others().next().is_some() {
        let by = |value: fn(&(u64, f64)) -> serde_json::Value| {
            others().map(|(module, own)| (module.replace('.', r"\."), value(own))).collect::<Map<_, _>>()
        };
        fields.insert("rank_pattern".into(), by(|own| own.0.into()).into());
        fields.insert("alpha_pattern".into(), by(|own| json!(own.1)).into());
    }
    fields
}

/// What adapts one tensor of the model.
#[derive(Debug, Default)]
struct Module {
    /// Its name, where not that of the tensor.
    name: Option<&'static str>,
    rank: u64,
    pieces: Vec<Piece>,
    embedding: bool,
}

/// Factors of some of the rows of a tensor.
#[derive(Debug)]
struct Piece {
    /// Tensor of the file, and the first of its rows.
    a: (usize, u64),
    b: usize,
    /// Row of the model's tensor, and that of `B`.
    rows: Vec<(u64, u64)>,
}

struct Reading<'a> {
    path: &'a Path,
    file: &'a GgufFile,
    numbers: HashMap<&'a str, usize>,
    base: &'a [TensorInfo],
    /// By the number of the model's tensor.
    modules: BTreeMap<usize, Module>,
    /// The model's tensor, the file's, and what was added to it.
    norms: Vec<(usize, usize, f32)>,
}

impl Reading<'_> {
    fn wrong(&self, tensor: usize, problem: impl Into<String>) -> Error {
        let tensor = self.file.tensors[tensor].name.clone();
        AdapterError::Tensor { path: self.path.into(), tensor, problem: problem.into() }.into()
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.numbers.get(name).copied()
    }

    fn tensor(&mut self, number: usize, name: &str, model: &Provenance) -> Result<(), Error> {
        let ggml_type = self.file.tensors[number].ggml_type;
        if !ggml_type.is_quantized() && !matches!(ggml_type, GgmlType::F32 | GgmlType::F16 | GgmlType::BF16) {
            return Err(self.wrong(number, format!("is of {}, expected floats", ggml_type.name())));
        }
        if let Some(adapted) = name.strip_suffix(".lora_b") {
            let Some(a) = self.find(&format!("{adapted}.lora_a")) else {
                return Err(self.wrong(number, "lacks its partner (lora_a and lora_b go together)"));
            };
            return self.pair(a, number, adapted, model);
        }
        if let Some(adapted) = name.strip_suffix(".lora_a") {
            return match self.find(&format!("{adapted}.lora_b")) {
                Some(_) => Ok(()),
                None => Err(self.wrong(number, "lacks its partner (lora_a and lora_b go together)")),
            };
        }
        match model.of(name) {
            Some((shape, Origins::Vector { tensor, plus })) if name.ends_with("_norm.weight") => {
                if self.file.tensors[number].shape != shape {
                    let found = &self.file.tensors[number].shape;
                    return Err(self.wrong(number, format!("has shape {found:?}, expected {shape:?}")));
                }
                self.norms.push((tensor, number, plus));
                Ok(())
            }
            _ => Err(self.wrong(number, "is neither lora_a, lora_b nor a norm of this base")),
        }
    }

    /// The factors of one tensor of the model's GGUF.
    fn pair(&mut self, a: usize, b: usize, adapted: &str, model: &Provenance) -> Result<(), Error> {
        let (shape, rows) = match model.of(adapted) {
            Some((shape, Origins::Rows(rows))) => (shape, rows),
            Some(_) => {
                return Err(self.wrong(
                    b,
                    "cannot be brought back: llama.cpp turns this weight over on its way into a GGUF, and its \
                     converter of adapters does not do that to factors as it should; merge the adapter that it \
                     was converted from",
                ));
            }
            // The head of a model that shares its embedding's weight.
            None if adapted == "output.weight" => return self.tied_head(a, b, model),
            None => return Err(self.wrong(b, format!("adapts {adapted}, which this base has not"))),
        };
        let embedding = adapted == "token_embd.weight";
        let (a_shape, b_shape) = (&self.file.tensors[a].shape, &self.file.tensors[b].shape);
        let (rank, fits) = fit(&shape, a_shape, b_shape, embedding);
        if !fits {
            let problem = format!(
                "and its partner have shapes {b_shape:?} and {a_shape:?}, which do not fit the base's {shape:?}"
            );
            return Err(self.wrong(b, problem));
        }
        let Some((first, _)) = rows.first().copied() else {
            return Err(self.wrong(b, format!("adapts {adapted}, which has no rows in this base")));
        };
        if embedding {
            let pieces = vec![Piece { a: (a, 0), b, rows: vec![] }];
            return self.whole(first, Module { name: None, rank, embedding, pieces }, b);
        }
        let shared = a_shape.len() == 2 || a_shape[0] == 1;
        // Rows of the model by its tensor, and by the expert of the GGUF's that they belong to.
        let out = shape[shape.len() - 2];
        let mut groups: BTreeMap<(usize, u64), Vec<(u64, u64)>> = BTreeMap::new();
        for (row, (source, there)) in (0..).zip(rows) {
            groups.entry((source, row / out)).or_default().push((there, row));
        }
        for ((source, expert), rows) in groups {
            if self.base[source].shape.len() != 2 {
                return Err(self.wrong(b, "adapts experts that this base stores in one tensor"));
            }
            let module = self.modules.entry(source).or_default();
            if !module.pieces.is_empty() && module.rank != rank {
                let other = module.rank;
                return Err(self.wrong(b, format!("has rank {rank}, another part of its weight {other}")));
            }
            module.rank = rank;
            module.pieces.push(Piece { a: (a, if shared { 0 } else { expert * rank }), b, rows });
        }
        Ok(())
    }

    fn whole(&mut self, source: usize, module: Module, b: usize) -> Result<(), Error> {
        if self.modules.insert(source, module).is_some() {
            return Err(self.wrong(b, "adapts a weight that others adapt too"));
        }
        Ok(())
    }

    fn tied_head(&mut self, a: usize, b: usize, model: &Provenance) -> Result<(), Error> {
        let Some((shape, Origins::Rows(rows))) = model.of("token_embd.weight") else {
            return Err(self.wrong(b, "adapts the head, which this base has not"));
        };
        let (a_shape, b_shape) = (&self.file.tensors[a].shape, &self.file.tensors[b].shape);
        let (rank, fits) = fit(&shape, a_shape, b_shape, false);
        let source = match rows.first() {
            Some((source, _)) if fits && !self.modules.contains_key(source) => *source,
            _ => return Err(self.wrong(b, "adapts the head, which is the embedding's weight in this base")),
        };
        let rows = (0..).zip(rows).map(|(row, (_, there))| (there, row)).collect();
        let pieces = vec![Piece { a: (a, 0), b, rows }];
        // What the merge does to a head that is the embedding is its own affair.
        self.whole(source, Module { name: Some("lm_head"), rank, embedding: false, pieces }, b)
    }
}

/// The rank of two factors, and whether they are those of a tensor of this shape.
fn fit(shape: &[u64], a: &[u64], b: &[u64], embedding: bool) -> (u64, bool) {
    let (Some(rank), [.., outer, inner]) = (b.last().copied(), shape) else { return (0, false) };
    let fits = if embedding {
        // B is [dim, r], A turned over.
        a == [*outer, rank] && b == [*inner, rank]
    } else {
        let experts = &shape[..shape.len() - 2];
        let a_fits = a.len() == shape.len()
            && a.ends_with(&[rank, *inner])
            && (a[..a.len() - 2] == *experts || a[..a.len() - 2].iter().all(|n| *n == 1));
        a_fits && b.len() == shape.len() && b[..b.len() - 1] == shape[..shape.len() - 1]
    };
    (rank, fits && rank > 0)
}

/// The tensors that PEFT would have saved, of those of a GGUF file.
#[derive(Debug)]
struct Factors {
    file: Arc<GgufFile>,
    infos: Vec<TensorInfo>,
    made_of: Vec<MadeOf>,
    /// The tensor made last: it is read a few rows at a time.
    last: Mutex<Option<(usize, Arc<Vec<f32>>)>>,
}

/// How a tensor comes about.
#[derive(Debug)]
enum MadeOf {
    /// As many rows of the file's tensors, from these on, one after the other.
    Rows { starts: Vec<(usize, u64)>, rows: u64 },
    /// Rows of the file's tensors put where they were, those of each beside those of the one before.
    Placed { pieces: Vec<(usize, Vec<(u64, u64)>)>, rank: u64 },
    /// A tensor of the file, turned over.
    Turned(usize),
    /// A tensor of the file, less a number.
    Less { tensor: usize, plus: f32 },
}

impl Factors {
    fn push(&mut self, info: TensorInfo, made_of: MadeOf) {
        self.infos.push(info);
        self.made_of.push(made_of);
    }

    fn module(&mut self, name: &str, base: &TensorInfo, module: &Module) {
        let (rows, cols) = (base.rows(), base.row_len());
        let info = |name, shape| TensorInfo::new(name, Dtype::F32, shape);
        let rank = module.rank * module.pieces.len() as u64;
        let starts = || module.pieces.iter().map(|piece| piece.a);
        if module.embedding {
            let piece = &module.pieces[0];
            self.push(info(format!("{name}.lora_embedding_A"), vec![rank, rows]), MadeOf::Turned(piece.a.0));
            let b = MadeOf::Rows { starts: vec![(piece.b, 0)], rows: cols };
            self.push(info(format!("{name}.lora_embedding_B"), vec![cols, rank]), b);
            return;
        }
        let a = MadeOf::Rows { starts: starts().collect(), rows: module.rank };
        self.push(info(format!("{name}.lora_A.weight"), vec![rank, cols]), a);
        let pieces = module.pieces.iter().map(|piece| (piece.b, piece.rows.clone())).collect();
        let b = MadeOf::Placed { pieces, rank: module.rank };
        self.push(info(format!("{name}.lora_B.weight"), vec![rows, rank]), b);
    }

    /// Elements of a tensor of the file, from `start` on.
    fn stored(&self, tensor: usize, start: u64, count: u64) -> Result<Vec<f32>, CheckpointError> {
        let of = &self.file.tensors[tensor];
        let block = of.ggml_type.block_len();
        let mut bytes = vec![0; (count / block * of.ggml_type.block_bytes()) as usize];
        self.file
            .read_at(tensor, start / block * of.ggml_type.block_bytes(), &mut bytes)
            .map_err(read_error)?;
        let mut values = vec![0.0; count as usize];
        decode(Level::detect(), of.ggml_type, &bytes, &mut values);
        Ok(values)
    }

    fn whole(&self, tensor: usize) -> Result<Vec<f32>, CheckpointError> {
        self.stored(tensor, 0, self.file.tensors[tensor].elements())
    }

    fn make(&self, tensor: usize) -> Result<Vec<f32>, CheckpointError> {
        match &self.made_of[tensor] {
            MadeOf::Rows { starts, rows } => {
                let cols = self.infos[tensor].row_len();
                let mut values = vec![];
                for (tensor, first) in starts {
                    values.extend(self.stored(*tensor, first * cols, rows * cols)?);
                }
                Ok(values)
            }
            MadeOf::Placed { pieces, rank } => {
                let mut values = vec![0.0; self.infos[tensor].elements() as usize];
                let (rank, cols) = (*rank as usize, self.infos[tensor].row_len() as usize);
                for (n, (tensor, rows)) in pieces.iter().enumerate() {
                    let stored = self.whole(*tensor)?;
                    for (to, from) in rows {
                        let to = *to as usize * cols + n * rank;
                        values[to..to + rank].copy_from_slice(&stored[*from as usize * rank..][..rank]);
                    }
                }
                Ok(values)
            }
            MadeOf::Turned(stored) => {
                let (values, rows) = (self.whole(*stored)?, self.infos[tensor].rows() as usize);
                let column = |k: usize| values.iter().skip(k).step_by(rows).copied();
                Ok((0..rows).flat_map(column).collect())
            }
            MadeOf::Less { tensor, plus } => Ok(self.whole(*tensor)?.into_iter().map(|v| v - plus).collect()),
        }
    }
}

impl TensorSource for Factors {
    fn tensors(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read_rows(&self, tensor: usize, rows: Rows, out: &mut [u8]) -> Result<(), CheckpointError> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let values = match &*last {
            Some((known, values)) if *known == tensor => values.clone(),
            _ => Arc::new(self.make(tensor)?),
        };
        *last = Some((tensor, values.clone()));
        drop(last);
        let start = (rows.start * self.infos[tensor].row_len()) as usize;
        for (bytes, value) in out.as_chunks_mut::<4>().0.iter_mut().zip(&values[start..]) {
            *bytes = value.to_le_bytes();
        }
        Ok(())
    }
}

fn read_error(error: tenon_gguf::Error) -> CheckpointError {
    match error {
        tenon_gguf::Error::Checkpoint(error) => error,
        other => CheckpointError::Source(Box::new(other)),
    }
}
