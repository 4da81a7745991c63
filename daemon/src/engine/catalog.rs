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
    /// Every model, by name. A missing folder holds none.
    pub fn list(&self) -> Result<Vec<Entry>, Error> {
        let mut entries: Vec<Entry> = Vec::new();
        if self.sim {
            entries.push(Entry {
                model: sim::MODEL.into(),
                path: PathBuf::new(),
                info: Ok(sim::info()),
            });
        }
        let unreadable = |error: std::io::Error| {
            Error::Internal(format!("model.dir {}: {error}", self.dir.display()))
        };
        let folder = match std::fs::read_dir(&self.dir) {
            Ok(folder) => folder,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(entries),
            Err(error) => return Err(unreadable(error)),
        };
        for item in folder {
            let path = item.map_err(unreadable)?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            if path.is_dir() && !name.starts_with('.') && !(self.sim && name == sim::MODEL) {
                let info = checkpoint::inspect(name, &path, self.isq);
                entries.push(Entry { model: name.to_owned(), path, info });
            }
        }
        entries.sort_by(|a, b| a.model.cmp(&b.model));
        Ok(entries)
    }

    /// The model of this name. The name is compared with what [`Catalog::list`] finds, so it cannot
    /// lead out of the folder.
    pub fn find(&self, model: &str) -> Result<Entry, Error> {
        self.list()?
            .into_iter()
            .find(|entry| entry.model == model)
            .ok_or_else(|| Error::ModelNotFound { model: model.into() })
    }
}
