//! Finding what a checkpoint has packed, by its headers and its configuration.

use std::collections::HashSet;
use std::sync::Arc;

use serde_json::Value;
use tenon_checkpoint::{Checkpoint, Dtype, TensorInfo, TensorSource};

use crate::format::Found;
use crate::scheme::{self, Scheme};
use crate::source::Weight;
use crate::{Dequantized, DequantizedFormat, Error};

/// What a checkpoint turned out to be.
#[derive(Debug)]
pub enum Opened {
    /// Not quantized.
    Plain,
    /// Quantized in a way that Tenon dequantizes.
    Quantized(Dequantized),
    /// Quantized in a way that Tenon does not know: its name, and why not.
    Unknown {
        /// The scheme as the configuration names it.
        scheme: String,
        /// A sentence.
        why: String,
    },
}

/// A checkpoint being sorted into weights and what belongs to them.
pub(crate) struct Shelf<'a> {
    pub(crate) base: &'a Checkpoint,
    /// Tensors that belong to a packed one.
    parts: HashSet<usize>,
}

impl Shelf<'_> {
    /// The tensor with this name.
    pub(crate) fn find(&self, name: &str) -> Option<usize> {
        self.base.find(name).map(|(index, _)| index)
    }

    pub(crate) fn info(&self, tensor: usize) -> &TensorInfo {
        &self.base.tensors()[tensor]
    }

    pub(crate) fn shape(&self, tensor: usize) -> &[u64] {
        &self.info(tensor).shape
    }

    /// The tensor that `tensor` needs beside it.
    pub(crate) fn need(&self, tensor: usize, format: &'static str, name: String) -> Result<usize, Error> {
        self.find(&name).ok_or_else(|| Error::Missing {
            tensor: self.info(tensor).name.clone(),
            format,
            missing: name,
        })
    }

    /// Fails unless the tensor has this shape.
    pub(crate) fn expect_shape(
        &self,
        tensor: usize,
        format: &'static str,
        expected: &[u64],
    ) -> Result<(), Error> {
        if self.shape(tensor) == expected {
            return Ok(());
        }
        Err(self.bad_shape(tensor, format, format!("{expected:?}")))
    }

    /// Fails if the tensor has no elements. One that has them lies in the file, so that its extents
    /// times a few do not overflow.
    pub(crate) fn expect_elements(&self, tensor: usize, format: &'static str) -> Result<(), Error> {
        match self.info(tensor).elements() {
            0 => Err(self.bad_shape(tensor, format, "extents above 0".into())),
            _ => Ok(()),
        }
    }

    pub(crate) fn bad_shape(&self, tensor: usize, format: &'static str, expected: String) -> Error {
        let info = self.info(tensor);
        Error::Shape { tensor: info.name.clone(), format, found: info.shape.clone(), expected }
    }

    /// Fails unless the tensor's type is one of these.
    pub(crate) fn expect_dtype(
        &self,
        tensor: usize,
        format: &'static str,
        among: &[Dtype],
        expected: &'static str,
    ) -> Result<(), Error> {
        let info = self.info(tensor);
        if among.contains(&info.dtype) {
            return Ok(());
        }
        Err(Error::Dtype { tensor: info.name.clone(), format, found: info.dtype.name(), expected })
    }

    /// Fails unless the tensor holds floats or exponents.
    pub(crate) fn expect_floats(&self, tensor: usize, format: &'static str) -> Result<(), Error> {
        let info = self.info(tensor);
        if crate::reader::is_float(info.dtype) {
            return Ok(());
        }
        let (tensor, found) = (info.name.clone(), info.dtype.name());
        Err(Error::Dtype { tensor, format, found, expected: "a floating-point type" })
    }
}

/// Looks at a checkpoint whose `config.json` is `config`.
///
/// Reads headers, and of the data only what tells shapes (bitsandbytes' `quant_state`,
/// compressed-tensors' `weight_shape`): a few hundred bytes a tensor.
pub fn open(base: Arc<Checkpoint>, config: &Value) -> Result<Opened, Error> {
    let scheme = match scheme::read(&base, config)? {
        scheme::Read::Unknown { scheme, why } => return Ok(Opened::Unknown { scheme, why }),
        scheme::Read::Known(scheme) => scheme,
    };
    let mut model = Dequantized::new(base.clone(), scheme::plain_config(config));
    // In a model of f32, tensors of f32 are its common sort; in another they were left so for a reason.
    let is_wide = scheme::dtype(config) == Some("float32");
    let mut shelf = Shelf { base: &base, parts: HashSet::new() };
    let mut found: Vec<(usize, Found)> = vec![];
    for tensor in 0..base.tensors().len() {
        if let Some(one) = scheme.find(&shelf, tensor)? {
            shelf.parts.extend(one.parts.iter().copied().filter(|part| *part != tensor));
            found.push((tensor, one));
        }
    }
    if found.is_empty() {
        // A configuration that quantizes nothing: all modules were left out.
        return Ok(if matches!(scheme, Scheme::ByTensors) {
            Opened::Plain
        } else {
            plain_of(model, &shelf, &scheme, is_wide)?
        });
    }
    let mut found = found.into_iter().peekable();
    for tensor in 0..base.tensors().len() {
        if let Some((_, one)) = found.next_if(|(main, _)| *main == tensor) {
            let format = match model.formats.iter().position(|known| known.name == one.label) {
                Some(format) => format,
                None => {
                    model.formats.push(DequantizedFormat { name: one.label, tensors: 0 });
                    model.formats.len() - 1
                }
            };
            model.formats[format].tensors += 1;
            let mut info = TensorInfo::new(one.name, Dtype::F32, one.shape);
            info.narrow = Some(Dtype::BF16);
            add(&mut model, info, Weight::Packed(one.packed, format, tensor))?;
        } else if !shelf.parts.contains(&tensor) && !scheme.drops(&shelf.info(tensor).name) {
            add_stored(&mut model, &shelf, tensor, is_wide)?;
        }
    }
    Ok(Opened::Quantized(model))
}

fn plain_of(
    mut model: Dequantized,
    shelf: &Shelf<'_>,
    scheme: &Scheme,
    is_wide: bool,
) -> Result<Opened, Error> {
    for tensor in 0..shelf.base.tensors().len() {
        if !scheme.drops(&shelf.info(tensor).name) {
            add_stored(&mut model, shelf, tensor, is_wide)?;
        }
    }
    Ok(Opened::Quantized(model))
}

fn add_stored(model: &mut Dequantized, shelf: &Shelf<'_>, tensor: usize, is_wide: bool) -> Result<(), Error> {
    let mut info = shelf.info(tensor).clone();
    let narrows = info.dtype == Dtype::F16 || is_wide && info.dtype == Dtype::F32;
    info.narrow = narrows.then_some(Dtype::BF16);
    add(model, info, Weight::Stored(tensor))
}

fn add(model: &mut Dequantized, info: TensorInfo, weight: Weight) -> Result<(), Error> {
    if model.by_name.insert(info.name.clone(), model.infos.len()).is_some() {
        return Err(Error::Twice { name: info.name });
    }
    model.infos.push(info);
    model.weights.push(weight);
    Ok(())
}
