//! Where settings come from, and how the sources are laid over each other.

use std::path::{Path, PathBuf};

use config::{Environment, File, FileFormat, Map, Source, Value, ValueKind};

use nestd_policy::settings::PROFILES;

use super::{DEFAULTS, Problem};

/// Where settings come from.
#[derive(Clone, Debug)]
pub struct Layers {
    /// The vendor's file; its drop-ins are in the folder of that name with `.d`.
    pub vendor: PathBuf,
    /// The administrator's file, likewise.
    pub admin: PathBuf,
    /// Somebody named the administrator's file, so it is a problem if it is not there.
    pub admin_must_exist: bool,
    /// The environment, as [`std::env::vars`] gives it.
    pub environment: Map<String, String>,
}

impl Layers {
    /// All layers in one table, each value with its origin. A file that cannot be read or parsed is
    /// a problem, and the others are still read.
    pub(super) fn merge(&self, problems: &mut Vec<Problem>) -> Value {
        let builder = |profile: &str| {
            let layers =
                config::Config::builder().add_source(File::from_str(DEFAULTS, FileFormat::Toml));
            layers.add_source(File::from_str(profile, FileFormat::Toml))
        };
        let mut files = Vec::new();
        for path in self.files(problems) {
            let file = File::from(path.clone()).format(FileFormat::Toml);
            match file.collect() {
                Ok(_) => files.push(file),
                Err(error) => problems
                    .push(Problem { origin: path.display().to_string(), what: error.to_string() }),
            }
        }
        let environment = Environment::with_prefix("NESTD").prefix_separator("_").separator("__");
        let environment = environment.source(Some(self.environment.clone()));
        let build = |profile: &str| {
            let layers = builder(profile).add_source(files.clone());
            layers.add_source(environment.clone()).build()
        };
        // The profile is a layer between the defaults and the files, and a file says which.
        let asked = build("").and_then(|config| config.get_string("governor.profile"));
        let asked = asked.unwrap_or_default();
        let profile = PROFILES.iter().find(|(name, _)| *name == asked);
        if profile.is_none() {
            let names = PROFILES.map(|(name, _)| format!("{name:?}")).join(", ");
            let what = format!("governor.profile: {asked:?} is not one of {names}");
            problems.push(Problem { origin: "settings".into(), what });
        }
        let (_, text) = profile.or(PROFILES.first()).copied().unwrap_or_default();
        match build(text) {
            Ok(config) => config.cache,
            Err(error) => {
                let origin = "the layers together".into();
                problems.push(Problem { origin, what: error.to_string() });
                Value::new(None, ValueKind::Table(Map::new()))
            }
        }
    }

    /// The files that exist, in the order in which they are read.
    fn files(&self, problems: &mut Vec<Problem>) -> Vec<PathBuf> {
        let mut drop_ins = std::collections::BTreeMap::new();
        for file in [&self.vendor, &self.admin] {
            let folder = with_d(file);
            let entries = match std::fs::read_dir(&folder) {
                Ok(entries) => entries,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => {
                    let origin = folder.display().to_string();
                    problems.push(Problem { origin, what: error.to_string() });
                    continue;
                }
            };
            for path in entries.flatten().map(|entry| entry.path()) {
                if path.extension().is_some_and(|extension| extension == "toml")
                    && let Some(name) = path.file_name()
                {
                    drop_ins.insert(name.to_owned(), path);
                }
            }
        }
        let wanted = |file: &&PathBuf| {
            // What exists and cannot be read is a problem when it is read.
            file.symlink_metadata().is_ok() || (self.admin_must_exist && **file == self.admin)
        };
        let main = [&self.vendor, &self.admin].into_iter().filter(wanted).cloned();
        main.chain(drop_ins.into_values()).collect()
    }
}

fn with_d(file: &Path) -> PathBuf {
    let mut folder = file.as_os_str().to_owned();
    folder.push(".d");
    folder.into()
}
