//! Persistent sessions on disk: a JSON file each, which only the daemon's user can read, written so that a
//! power cut leaves the old or the new one. What is damaged is logged and left where it is.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::types::{Message, Part, Role, SessionSettings};

/// A file that is larger is none of ours: texts are bounded, and JSON takes six bytes for one at most.
const LARGEST: u64 = 128 << 20;
const ENDING: &str = ".json";

/// What is kept of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) owner: String,
    pub(super) ttl: Duration,
    pub(super) transcript: Vec<Message>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Format {
    version: u32,
    owner: String,
    ttl_ms: u64,
    transcript: Vec<Turn>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Turn {
    role: String,
    text: Vec<String>,
}

/// Keeps a session, or removes what was kept of it.
pub(super) fn write(dir: &Path, id: &str, stored: Option<&Stored>) -> io::Result<()> {
    let path = dir.join(format!("{id}{ENDING}"));
    match stored {
        None => match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            removed => removed?,
        },
        Some(stored) => {
            if !dir.exists() {
                DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
                if let Some(parent) = dir.parent() {
                    File::open(parent)?.sync_all()?;
                }
            }
            let fresh = dir.join(format!("{id}.new"));
            let mut open = OpenOptions::new();
            let mut file = open.write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
            file.write_all(&serde_json::to_vec(&Format::from(stored))?)?;
            file.sync_all()?;
            fs::rename(&fresh, path)?;
        }
    }
    // The name in the folder is on disk only when the folder is.
    File::open(dir)?.sync_all()
}

/// Every session that was kept, up to the configured number, and how long ago.
pub(super) fn read_all(settings: &SessionSettings) -> Vec<(String, Stored, Duration)> {
    let mut all = Vec::new();
    if settings.dir.as_os_str().is_empty() {
        return all;
    }
    let entries = match fs::read_dir(&settings.dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return all,
        Err(error) => {
            tracing::warn!(dir = %settings.dir.display(), %error, "no session can be read");
            return all;
        }
    };
    let mut names: Vec<_> =
        entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    for name in names {
        let path = settings.dir.join(&name);
        // What a power cut left half-written.
        if name.strip_suffix(".new").is_some_and(is_id) {
            let _ = fs::remove_file(&path);
        }
        let Some(id) = name.strip_suffix(ENDING).filter(|id| is_id(id)) else { continue };
        if all.len() >= settings.total as usize {
            tracing::warn!(dir = %settings.dir.display(), "more sessions than sessions.total are left");
            break;
        }
        match read(&path) {
            Ok((stored, age)) => all.push((id.to_owned(), stored, age)),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the session is damaged");
            }
        }
    }
    all
}

fn is_id(name: &str) -> bool {
    name.len() == 16 && name.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn read(path: &Path) -> io::Result<(Stored, Duration)> {
    let mut text = Vec::new();
    let file = File::open(path)?;
    // A clock that was set back, or a device without one, makes it fresh.
    let age = SystemTime::now().duration_since(file.metadata()?.modified()?).unwrap_or_default();
    file.take(LARGEST).read_to_end(&mut text)?;
    let format: Format = serde_json::from_slice(&text)?;
    Ok((format.try_into()?, age))
}

impl From<&Stored> for Format {
    fn from(stored: &Stored) -> Self {
        let turn = |message: &Message| Turn {
            role: message.role.name().to_owned(),
            text: message.parts.iter().map(|Part::Text(text)| text.clone()).collect(),
        };
        Self {
            version: 1,
            owner: stored.owner.clone(),
            ttl_ms: u64::try_from(stored.ttl.as_millis()).unwrap_or(u64::MAX),
            transcript: stored.transcript.iter().map(turn).collect(),
        }
    }
}

impl TryFrom<Format> for Stored {
    type Error = io::Error;

    fn try_from(format: Format) -> io::Result<Self> {
        if format.version != 1 {
            return Err(io::Error::other(format!("it has the version {}", format.version)));
        }
        let message = |turn: Turn| {
            let role = [Role::System, Role::User, Role::Assistant];
            let role = role.into_iter().find(|role| role.name() == turn.role);
            let role = role.ok_or_else(|| io::Error::other("it holds an unknown role"))?;
            let parts = turn.text.into_iter().map(Part::Text).collect();
            Ok(Message { role, parts })
        };
        Ok(Self {
            owner: format.owner,
            ttl: Duration::from_millis(format.ttl_ms).min(super::LONGEST_TTL),
            transcript: format.transcript.into_iter().map(message).collect::<io::Result<_>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(dir: &Path) -> SessionSettings {
        SessionSettings { dir: dir.into(), total: 2, per_user: 2, ttl: Duration::from_secs(1) }
    }

    fn stored() -> Stored {
        let message = |role, text: &str| Message { role, parts: vec![Part::Text(text.into())] };
        Stored {
            owner: "uid 7".into(),
            ttl: Duration::from_secs(60),
            transcript: vec![
                message(Role::System, "Be \"brief\".\n\0"),
                message(Role::User, "Grüße"),
                message(Role::Assistant, ""),
            ],
        }
    }

    #[test]
    fn what_is_written_is_read_and_only_by_its_owner() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("sessions");
        assert_eq!(read_all(&settings(&dir)), []);
        let id = "0123456789abcdef";
        write(&dir, id, None).unwrap();
        write(&dir, id, Some(&stored())).unwrap();
        let [(name, read, age)] = &read_all(&settings(&dir))[..] else { panic!("one") };
        assert_eq!((name.as_str(), read), (id, &stored()));
        assert!(*age < Duration::from_secs(600));
        let file = File::options().write(true).open(dir.join(format!("{id}.json"))).unwrap();
        let hour = Duration::from_secs(3600);
        file.set_modified(SystemTime::now() - hour).unwrap();
        assert!(read_all(&settings(&dir))[0].2 >= hour);
        file.set_modified(SystemTime::now() + hour).unwrap();
        assert_eq!(read_all(&settings(&dir))[0].2, Duration::ZERO, "the clock was set back");
        for (path, mode) in [(dir.clone(), 0o700), (dir.join(format!("{id}.json")), 0o600)] {
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, mode);
        }
        write(&dir, id, None).unwrap();
        write(&dir, id, None).unwrap();
        assert_eq!(read_all(&settings(&dir)), []);
    }

    #[test]
    fn damage_is_left_alone_and_half_a_file_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        write(dir, "00000000000000ff", Some(&stored())).unwrap();
        let whole = fs::read(dir.join("00000000000000ff.json")).unwrap();
        fs::write(dir.join("0000000000000001.json"), &whole[..whole.len() / 2]).unwrap();
        fs::write(dir.join("0000000000000002.json"), [0xff; 100]).unwrap();
        fs::write(dir.join("0000000000000003.new"), "half").unwrap();
        fs::write(dir.join("notes.json"), &whole).unwrap();
        let read: Vec<_> = read_all(&settings(dir)).into_iter().map(|(id, ..)| id).collect();
        assert_eq!(read, ["00000000000000ff"]);
        assert!(!dir.join("0000000000000003.new").exists());
        assert!(dir.join("0000000000000001.json").exists());
        for id in ["0000000000000004", "0000000000000005"] {
            write(dir, id, Some(&stored())).unwrap();
        }
        assert_eq!(read_all(&settings(dir)).len(), 2, "no more than sessions.total");
    }
}
