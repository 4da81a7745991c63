//! The paths of requests, by caller: one is in use from the call until its object is gone. The caller
//! that leaves the bus cancels what is below its name.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nestd_proto::{dbus::REQUEST_PATH, sender_element};
use tokio_util::sync::CancellationToken;
use zbus::OwnedObjectPath;

use crate::types::Error;

/// Requests and ended ones that one caller may have on the bus.
const PER_CALLER: usize = 256;

type Tokens = HashMap<String, CancellationToken>;

/// All paths in use. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Handles {
    callers: Arc<Mutex<Callers>>,
}

#[derive(Default)]
struct Callers {
    by_name: HashMap<String, Tokens>,
    next: u64,
}

/// A path in use; dropping it frees the path.
pub(super) struct Handle {
    handles: Handles,
    sender: String,
    token: String,
    /// The request's object.
    pub(super) path: OwnedObjectPath,
    /// Cancelled when the caller has left the bus.
    pub(super) gone: CancellationToken,
}

impl Handles {
    fn lock(&self) -> MutexGuard<'_, Callers> {
        self.callers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the path that the caller wants, or one that is free.
    pub(super) fn take(&self, sender: &str, token: Option<String>) -> Result<Handle, Error> {
        let mut callers = self.lock();
        callers.next += 1;
        let token = match token {
            Some(token) if !is_element(&token) => {
                return Err(Error::invalid("handle_token", "is not 1 to 64 of [A-Za-z0-9_]"));
            }
            Some(token) => token,
            None => format!("nestd{}", callers.next),
        };
        let path = format!("{REQUEST_PATH}/{}/{token}", sender_element(sender));
        let path = OwnedObjectPath::try_from(path)
            .map_err(|error| Error::Internal(format!("request path: {error}")))?;
        let tokens = callers.by_name.entry(sender.to_owned()).or_default();
        if tokens.contains_key(&token) {
            return Err(Error::invalid("handle_token", format!("{token:?} is in use")));
        }
        if tokens.len() >= PER_CALLER {
            let limit = u32::try_from(PER_CALLER).unwrap_or(u32::MAX);
            return Err(Error::QueueFull { limit, retry_after_ms: 1000 });
        }
        let gone = CancellationToken::new();
        tokens.insert(token.clone(), gone.clone());
        Ok(Handle { handles: self.clone(), sender: sender.to_owned(), token, path, gone })
    }

    /// The caller has left the bus.
    pub(super) fn left(&self, sender: &str) {
        if let Some(tokens) = self.lock().by_name.get(sender) {
            tokens.values().for_each(CancellationToken::cancel);
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut callers = self.handles.lock();
        if let Some(tokens) = callers.by_name.get_mut(&self.sender) {
            tokens.remove(&self.token);
            if tokens.is_empty() {
                callers.by_name.remove(&self.sender);
            }
        }
    }
}

fn is_element(token: &str) -> bool {
    (1..=64).contains(&token.len())
        && token.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_in_use_until_its_handle_is_dropped() {
        let handles = Handles::default();
        let first = handles.take(":1.7", Some("a".into())).unwrap();
        assert_eq!(first.path.as_str(), "/org/nestd/Nestd1/request/1_7/a");
        assert!(handles.take(":1.7", Some("a".into())).is_err());
        assert!(handles.take(":1.8", Some("a".into())).is_ok());
        drop(first);
        assert!(handles.take(":1.7", Some("a".into())).is_ok());
        assert!(handles.lock().by_name.is_empty());
    }

    #[test]
    fn tokens_are_path_elements() {
        let handles = Handles::default();
        for token in ["", "a/b", "ä", "a-b", &"x".repeat(65)] {
            assert!(handles.take(":1.7", Some(token.into())).is_err(), "{token:?}");
        }
    }

    #[test]
    fn leaving_cancels_the_callers_own() {
        let handles = Handles::default();
        let mine = handles.take(":1.7", None).unwrap();
        let other = handles.take(":1.70", None).unwrap();
        handles.left(":1.7");
        assert!(mine.gone.is_cancelled());
        assert!(!other.gone.is_cancelled());
    }

    #[test]
    fn one_caller_cannot_take_all() {
        let handles = Handles::default();
        let taken: Vec<_> = (0..PER_CALLER).map(|_| handles.take(":1.7", None).unwrap()).collect();
        assert!(matches!(handles.take(":1.7", None), Err(Error::QueueFull { .. })));
        assert!(handles.take(":1.8", None).is_ok());
        drop(taken);
    }
}
