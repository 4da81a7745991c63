//! A session's file.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic is a find")]

use std::path::Path;
use std::time::Duration;

use super::disk::{self, Stored};
use crate::types::{Message, Part, Role, SessionSettings};

const ID: &str = "0123456789abcdef";

/// What is read is written so that it is read again.
pub(crate) fn run(folder: &Path, bytes: &[u8]) {
    std::fs::write(folder.join(format!("{ID}.json")), bytes).unwrap();
    let dir = folder.to_owned();
    let settings = SessionSettings { dir, total: 2, per_user: 2, ttl: Duration::from_secs(1) };
    let read = || {
        let all = disk::read_all(&settings).into_iter();
        all.map(|(id, stored, _age)| (id, stored)).collect::<Vec<_>>()
    };
    let first = read();
    for (id, stored) in &first {
        assert!(stored.ttl <= super::LONGEST_TTL);
        disk::write(folder, id, Some(stored)).unwrap();
        assert_eq!(read(), first);
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let message = |role, text: &str| Message { role, parts: vec![Part::Text(text.into())] };
    let stored = Stored {
        owner: "uid 7".into(),
        ttl: Duration::from_secs(60),
        transcript: vec![
            message(Role::System, "Be \"brief\".\n\0"),
            message(Role::User, "Gr\u{fc}\u{df}e"),
            message(Role::Assistant, ""),
        ],
    };
    let folder = std::env::temp_dir().join(format!("nestd-fuzz-seed-{}", std::process::id()));
    disk::write(&folder, ID, Some(&stored)).unwrap();
    let seed = std::fs::read(folder.join(format!("{ID}.json"))).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    vec![seed]
}
