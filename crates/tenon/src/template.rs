//! Deployment Template Files: attached to a Base Model when they are right, and
//! proposed from the model's own `chat_template`.

use std::path::Path;

use tenon_checkpoint::{Error as CheckpointError, read_text};
use tenon_deploy::template::{Agreement, DeploymentTemplate, Suggestion, agreement, suggest};
use tenon_registry::{BaseModel, Template};

use crate::{Error, Tenon};

/// Largest Deployment Template File.
const MAX_TEMPLATE_BYTES: u64 = 1 << 20;

impl Tenon {
    /// Attaches a Deployment Template File to a Base Model, in place of the one before.
    ///
    /// # Errors
    /// All mistakes in it, with line and column; then nothing is changed.
    pub fn set_template(&self, base: &str, file: &Path) -> Result<BaseModel, Error> {
        let found = std::fs::metadata(file).map_err(CheckpointError::io("examine", file))?.len();
        if found > MAX_TEMPLATE_BYTES {
            return Err(
                CheckpointError::TooLarge { path: file.into(), found, limit: MAX_TEMPLATE_BYTES }.into()
            );
        }
        let text = read_text(file)?;
        if text.trim().is_empty() {
            return Err(Error::EmptyTemplate { file: file.into() });
        }
        let name = file.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        self.set_template_text(base, name, text)
    }

    /// The same for a text; `file` is the name that it goes by.
    ///
    /// # Errors
    /// See [`set_template`](Self::set_template).
    pub fn set_template_text(&self, base: &str, file: String, text: String) -> Result<BaseModel, Error> {
        let base: BaseModel = self.registry.get(base)?;
        DeploymentTemplate::parse(&file, &text)?;
        self.registry.set_template(&base.name, Template { file, text })?;
        Ok(self.registry.get(base.name.as_str())?)
    }

    /// The Deployment Template File of a Base Model: its record, and what it says.
    ///
    /// # Errors
    /// [`Error::NoTemplate`] where none is attached; mistakes in one that an earlier version let through.
    pub fn template(&self, base: &str) -> Result<(Template, DeploymentTemplate), Error> {
        let base: BaseModel = self.registry.get(base)?;
        let template = base.template.ok_or(Error::NoTemplate { base: base.name })?;
        let read = DeploymentTemplate::parse(&template.file, &template.text)?;
        Ok((template, read))
    }

    /// How the attached file and the model's own `chat_template` render the same conversations;
    /// `None` where the model has none, or a renderer of the server takes the template's place.
    ///
    /// # Errors
    /// See [`template`](Self::template).
    pub fn template_agreement(&self, base: &str) -> Result<Option<Vec<Agreement>>, Error> {
        let record: BaseModel = self.registry.get(base)?;
        let (_, read) = self.template(base)?;
        Ok(agreement(&record.path, &read)?)
    }

    /// Proposes a Deployment Template File for a Base Model. Nothing is changed:
    /// [`set_template_text`](Self::set_template_text) attaches it.
    ///
    /// # Errors
    /// Where the model has no `chat_template`, or one that has no likeness in Go.
    pub fn suggest_template(&self, base: &str) -> Result<Suggestion, Error> {
        let base: BaseModel = self.registry.get(base)?;
        Ok(suggest(&base.path)?)
    }

    /// Takes the Deployment Template File off a Base Model. Whether there was one.
    ///
    /// # Errors
    /// Those of the catalogue.
    pub fn remove_template(&self, base: &str) -> Result<bool, Error> {
        let base: BaseModel = self.registry.get(base)?;
        self.registry.update_base(&base.name, &mut |base| base.template = None)?;
        Ok(base.template.is_some())
    }
}
