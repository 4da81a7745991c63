//! What callers hold, until they release it or leave the bus. Each has a task that waits for that.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;
use zbus::message::Header;

use super::handles::Handle;

/// Everything of one kind that is held, by its number. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Held {
    holders: Arc<Mutex<HashMap<u64, Holder>>>,
}

/// Whose it is, and what ends it.
struct Holder {
    sender: String,
    released: CancellationToken,
}

impl Held {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Holder>> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what dropping ends, for the sender of the handle.
    pub(super) fn keep(&self, id: u64, held: impl Send + 'static, sender: String, handle: Handle) {
        let released = CancellationToken::new();
        self.lock().insert(id, Holder { sender, released: released.clone() });
        let all = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = handle.gone.cancelled() => {}
                () = released.cancelled() => {}
            }
            all.lock().remove(&id);
            drop(held);
        });
    }

    /// Ends what the sender holds by this number; false if that is nothing.
    pub(super) fn release(&self, id: u64, header: &Header<'_>) -> bool {
        let sender = header.sender().map(ToString::to_string).unwrap_or_default();
        let holders = self.lock();
        let own = holders.get(&id).filter(|holder| holder.sender == sender);
        own.inspect(|holder| holder.released.cancel()).is_some()
    }
}
