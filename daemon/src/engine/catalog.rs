//! Which models there are: the folders and GGUF files in `model.dir`, each looked at through its
//! headers only, and the simulator where the configuration turns it on.
//!
//! A GGUF file, or a folder with exactly one, is for the engine `elastic`; a folder with a `config.json`
//! is a Hugging Face checkpoint for `mistralrs`. Where both would do, the configuration says.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::{Settings, checkpoint, elastic, sim};
use crate::types::{EngineKind, Error, ModelInfo};

/// A model that was found, usable or not.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The folder's name, or the file's without its extension.
    pub model: String,
    /// What the engine opens: the folder or the file; empty for the simulator.
    pub path: PathBuf,
    /// When the file, or the newest one in the folder, was written last.
    pub written: Option<SystemTime>,
    /// What its headers say, or why it cannot be used.
    pub info: Result<ModelInfo, Error>,
}

/// Where to look.
#[derive(Clone, Debug, PartialEq)]
pub struct Catalog {
    /// The folder of models.
    pub dir: PathBuf,
    /// Whether the simulator is a model too.
    pub sim: bool,
    /// The engine for models that more than one could run; None is what was built in, mistral.rs first.
    pub prefer: Option<EngineKind>,
    /// How models are loaded, for the estimate of their memory.
    pub engine: Settings,
}

impl Catalog {
    /// Every model, by name, with what its headers say.
    pub fn list(&self) -> Result<Vec<Entry>, Error> {
        Ok(self.found()?.into_iter().map(|(model, path)| self.inspect(model, path)).collect())
    }

    /// The names alone: no file of a model is read.
    pub fn names(&self) -> Result<Vec<String>, Error> {
        Ok(self.found()?.into_iter().map(|(model, _)| model).collect())
    }

    /// The model of this name. The name is compared with those that are there, so it cannot lead out
    /// of the folder.
    pub fn find(&self, model: &str) -> Result<Entry, Error> {
        let found = self.found()?.into_iter().find(|(name, _)| name == model);
        let (model, path) = found.ok_or_else(|| Error::ModelNotFound { model: model.into() })?;
        Ok(self.inspect(model, path))
    }

    /// Names with folders or files, sorted; the simulator has none. A missing `model.dir` holds no model.
    fn found(&self) -> Result<Vec<(String, PathBuf)>, Error> {
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
            let name = match is_gguf(&path) {
                true => name.strip_suffix(".gguf").unwrap_or(name),
                false if path.is_dir() => name,
                false => continue,
            };
            if !name.starts_with('.') && !found.iter().any(|(known, _)| known == name) {
                found.push((name.to_owned(), path));
            }
        }
        found.sort();
        Ok(found)
    }

    fn inspect(&self, model: String, path: PathBuf) -> Entry {
        if path.as_os_str().is_empty() {
            return Entry { model, path, written: None, info: Ok(sim::info()) };
        }
        // Before its headers are read: one that is written meanwhile is noticed the next time.
        let written = written(&path);
        if let Some(file) = self.gguf(&path) {
            let info = elastic::inspect(&model, &file, &self.engine);
            return Entry { model, path: file, written, info };
        }
        let info = checkpoint::inspect(&model, &path, self.engine.isq);
        Entry { model, path, written, info }
    }

    /// The GGUF file to open for a model, if that is how it is run.
    fn gguf(&self, path: &Path) -> Option<PathBuf> {
        if is_gguf(path) {
            return Some(path.to_owned());
        }
        let checkpoint = path.join("config.json").exists();
        let prefer = self.prefer.unwrap_or(if cfg!(feature = "mistralrs") {
            EngineKind::Mistralrs
        } else {
            EngineKind::Elastic
        });
        if checkpoint && prefer == EngineKind::Mistralrs {
            return None;
        }
        let mut files = std::fs::read_dir(path).ok()?.flatten().map(|item| item.path());
        let file = files.find(|path| is_gguf(path))?;
        files.all(|path| !is_gguf(&path)).then_some(file)
    }
}

fn written(path: &Path) -> Option<SystemTime> {
    let inside = std::fs::read_dir(path).into_iter().flatten().flatten().map(|item| item.path());
    inside.chain([path.to_owned()]).filter_map(|path| path.metadata().ok()?.modified().ok()).max()
}

fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "gguf") && path.is_file()
}
