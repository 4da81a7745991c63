//! Which models there are: the folders below `model.dir`, each looked at through its files' headers
//! only, and the simulator where the configuration turns it on.

use std::path::PathBuf;

use super::{Isq, checkpoint, sim};
use crate::types::{Error, ModelInfo};

/// A model that was found, usable or not.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The folder's name.
    pub model: String,
    /// The folder; empty for the simulator.
    pub path: PathBuf,
    /// What its headers say, or why it cannot be used.
    pub info: Result<ModelInfo, Error>,
}

/// Where to look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Catalog {
    /// The folder of models.
    pub dir: PathBuf,
    /// Whether the simulator is a model too.
    pub sim: bool,
    /// What models of full weights are quantized to, for the estimate of their memory.
    pub isq: Isq,
}

impl Catalog {
    /// Every model, by name, with what its headers say.
    pub fn list(&self) -> Result<Vec<Entry>, Error> {
        Ok(self.folders()?.into_iter().map(|(model, path)| self.inspect(model, path)).collect())
    }

    /// The names alone: no file of a model is read.
    pub fn names(&self) -> Result<Vec<String>, Error> {
        Ok(self.folders()?.into_iter().map(|(model, _)| model).collect())
    }

    /// The model of this name. The name is compared with those that are there, so it cannot lead out
    /// of the folder.
    pub fn find(&self, model: &str) -> Result<Entry, Error> {
        let found = self.folders()?.into_iter().find(|(name, _)| name == model);
        let (model, path) = found.ok_or_else(|| Error::ModelNotFound { model: model.into() })?;
        Ok(self.inspect(model, path))
    }

    /// Names and folders, sorted; the simulator has none. A missing `model.dir` holds no model.
    fn folders(&self) -> Result<Vec<(String, PathBuf)>, Error> {
        let mut found = Vec::new();
        if self.sim {
            found.push((sim::MODEL.to_owned(), PathBuf::new()));
        }
        let unreadable = |error: std::io::Error| {
            Error::Internal(format!("model.dir {}: {error}", self.dir.display()))
        };
        let folder = match std::fs::read_dir(&self.dir) {
            Ok(folder) => folder,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(found),
            Err(error) => return Err(unreadable(error)),
        };
        for item in folder {
            let path = item.map_err(unreadable)?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            if path.is_dir() && !name.starts_with('.') && !(self.sim && name == sim::MODEL) {
                found.push((name.to_owned(), path));
            }
        }
        found.sort();
        Ok(found)
    }

    fn inspect(&self, model: String, path: PathBuf) -> Entry {
        let info = if path.as_os_str().is_empty() {
            Ok(sim::info())
        } else {
            checkpoint::inspect(&model, &path, self.isq)
        };
        Entry { model, path, info }
    }
}
