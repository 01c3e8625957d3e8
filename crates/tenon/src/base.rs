//! A base as a merge reads it: as it lies, or dequantized where it is stored quantized.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use tenon_checkpoint::{Checkpoint, TensorInfo, TensorSource, read_json, read_text};
use tenon_dequant::{Dequantized, DequantizedFormat, Opened};

use crate::Error;

/// A base directory, opened.
pub(crate) struct Base {
    /// Its files.
    pub(crate) checkpoint: Arc<Checkpoint>,
    /// Its `config.json` as it stands.
    pub(crate) config_text: String,
    config: Value,
    dequantized: Option<Arc<Dequantized>>,
    unknown: Option<String>,
}

impl Base {
    pub(crate) fn open(dir: &Path) -> Result<Self, Error> {
        let checkpoint = Arc::new(Checkpoint::open(dir)?);
        let config_path = dir.join("config.json");
        if !config_path.exists() {
            return Err(Error::NoConfig { dir: dir.into() });
        }
        let config_text = read_text(&config_path)?;
        let config: Value = read_json(&config_path)?;
        let (dequantized, unknown) = match tenon_dequant::open(checkpoint.clone(), &config)? {
            Opened::Plain => (None, None),
            Opened::Quantized(model) => (Some(Arc::new(model)), None),
            // What is stored in a way nobody here knows may pass through; the plan refuses to edit it.
            Opened::Unknown { scheme, why } => (None, Some(format!("{scheme}: {why}"))),
        };
        Ok(Self { checkpoint, config_text, config, dequantized, unknown })
    }

    /// Its tensors as the model has them.
    pub(crate) fn source(&self) -> Arc<dyn TensorSource> {
        match &self.dequantized {
            Some(model) => model.clone(),
            None => self.checkpoint.clone(),
        }
    }

    /// Names and shapes of its tensors as the model has them.
    pub(crate) fn tensors(&self) -> &[TensorInfo] {
        match &self.dequantized {
            Some(model) => model.tensors(),
            None => self.checkpoint.tensors(),
        }
    }

    /// The configuration of the model that its tensors make.
    pub(crate) fn config(&self) -> &Value {
        self.dequantized.as_ref().map_or(&self.config, |model| model.config())
    }

    /// Whether [`config_text`](Self::config_text) says otherwise than [`config`](Self::config).
    pub(crate) fn config_changed(&self) -> bool {
        self.dequantized.is_some()
    }

    /// The formats that tensors are dequantized from.
    pub(crate) fn formats(&self) -> &[DequantizedFormat] {
        self.dequantized.as_ref().map_or(&[], |model| model.formats())
    }

    /// The format that a tensor is dequantized from.
    pub(crate) fn format(&self, name: &str) -> Option<&str> {
        let model = self.dequantized.as_ref()?;
        model.format(model.find(name)?)
    }

    /// The quantization scheme that nobody here knows, and why not.
    pub(crate) fn unknown(&self) -> Option<&str> {
        self.unknown.as_deref()
    }

    /// A plan's error, with what is known of how the base is quantized.
    pub(crate) fn explain(&self, mut error: tenon_merge::Error) -> Error {
        if let (tenon_merge::Error::QuantizedBase { scheme, .. }, Some(unknown)) = (&mut error, &self.unknown)
        {
            scheme.clone_from(unknown);
        }
        error.into()
    }

    /// What a person should know of it.
    pub(crate) fn note(&self) -> Option<String> {
        self.dequantized.as_ref()?;
        Some(match self.formats() {
            [] => "config.json says that the base is quantized, but none of its tensors are".into(),
            formats => format!(
                "the base is stored quantized and was dequantized: {}; the result is a model of full precision",
                listed(formats)
            ),
        })
    }
}

/// `3 tensors from GPTQ`, and so on.
pub(crate) fn listed(formats: &[DequantizedFormat]) -> String {
    let each = |format: &DequantizedFormat| {
        let plural = if format.tensors == 1 { "" } else { "s" };
        format!("{} tensor{plural} from {}", format.tensors, format.name)
    };
    formats.iter().map(each).collect::<Vec<_>>().join(", ")
}
