//! What this connection holds at the daemon. Dropping it lets go, also when nobody waits any more for the call
//! that was to get it.

use nestd_proto::dbus::PATH;
use tokio::sync::oneshot;

use super::Dbus;
use crate::Error;

/// Something that is held, by its number.
pub(super) struct Held {
    dbus: Dbus,
    pub(super) id: u64,
    interface: &'static str,
    release: &'static str,
}

impl Held {
    /// Makes the call that takes hold; `release` of the same interface lets go.
    pub(super) async fn take(
        dbus: Dbus,
        interface: &'static str,
        release: &'static str,
        call: impl Future<Output = Result<u64, Error>> + Send + 'static,
    ) -> Result<Self, Error> {
        let (called, held) = oneshot::channel();
        // The task makes the call: what nobody takes is dropped, which ends it.
        tokio::spawn(async move {
            let id = call.await;
            let _ = called.send(id.map(|id| Self { dbus, id, interface, release }));
        });
        held.await.map_err(|_| Error::disconnected())?
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Self { dbus, id, interface, release } = self;
        let (dbus, id, interface, release) = (dbus.clone(), *id, *interface, *release);
        // Without a runtime the connection is about to go, which ends what it holds too.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime
                .spawn(async move { dbus.call_at::<_, ()>(PATH, interface, release, &id).await });
        }
    }
}
