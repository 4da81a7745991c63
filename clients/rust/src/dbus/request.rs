//! A request under way on the bus: subscribes to its object, makes the call that starts it, and turns
//! its signals into events. `Dbus` starts them; each is a task of its own, because a stream that is
//! not read holds up everything else on the connection.

use futures::StreamExt;
use nestd_proto::{
    dbus::{NAME, REQUEST_PATH},
    sender_element,
    v1::{GenerateEvent, generate_event::Event},
};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::UnboundedReceiverStream;
use zbus::{
    MatchRule, Message, MessageStream, OwnedObjectPath, OwnedVariant,
    message::{Flags, Type},
    names::UniqueName,
};

use super::{BUS, Dbus, convert};
use crate::{Error, Events};

const REQUEST: &str = "org.nestd.Request1";

/// Starts a request with `call`, which passes `token` as its handle token. Dropping the events ends it
/// if it is to be cancelled.
pub async fn start<F, R>(dbus: Dbus, token: &str, cancel: bool, call: F) -> Result<Events, Error>
where
    F: FnOnce(Dbus) -> R + Send + 'static,
    R: Future<Output = Result<OwnedObjectPath, Error>> + Send + 'static,
{
    let mut request = Request::subscribe(dbus, token, cancel).await?;
    // The daemon bounds an answer, and so what waits here for a reader that is slow.
    let (events, receiver) = mpsc::unbounded_channel();
    let (started, result) = oneshot::channel();
    // The task makes the call too: if the caller gives up meanwhile, somebody must cancel it.
    tokio::spawn(async move {
        let begun = request.begin(call).await;
        let goes_on = begun.is_ok();
        let _ = started.send(begun);
        if goes_on {
            request.run(&events).await;
        }
    });
    result.await.map_err(|_| Error::disconnected())??;
    Ok(UnboundedReceiverStream::new(receiver).boxed())
}

/// What watches for a daemon that leaves the bus.
pub struct Owner {
    changes: MessageStream,
    pub name: UniqueName<'static>,
}

impl Owner {
    /// Subscribes, then looks who owns the name.
    pub async fn watch(dbus: &Dbus) -> Result<Self, Error> {
        let rule = MatchRule::builder()
            .msg_type(Type::Signal)
            .sender(BUS)
            .interface(BUS)
            .member("NameOwnerChanged")
            .arg(0, NAME);
        let changes = MessageStream::for_match_rule(rule.build()?, &dbus.connection, None).await?;
        Ok(Self { changes, name: dbus.owner().await? })
    }

    /// Waits for the owner to go, or for the connection to end.
    pub async fn gone(&mut self) {
        while let Some(Ok(change)) = self.changes.next().await {
            let body = change.body();
            match body.deserialize::<(&str, &str, &str)>() {
                Ok((_, old, _)) if old == self.name.as_str() => return,
                _ => {}
            }
        }
    }
}

struct Request {
    dbus: Dbus,
    path: String,
    cancel: bool,
    signals: MessageStream,
    owner: Owner,
    id: u64,
}

impl Request {
    async fn subscribe(dbus: Dbus, token: &str, cancel: bool) -> Result<Self, Error> {
        let owner = Owner::watch(&dbus).await?;
        let sender = dbus.connection.unique_name().map(|name| sender_element(name.as_str()));
        let path = format!("{REQUEST_PATH}/{}/{token}", sender.unwrap_or_default());
        let rule = MatchRule::builder()
            .msg_type(Type::Signal)
            .sender(owner.name.clone())
            .interface(REQUEST)
            .path(path.clone());
        let signals = MessageStream::for_match_rule(rule.build()?, &dbus.connection, None).await?;
        Ok(Self { dbus, path, cancel, signals, owner, id: 0 })
    }

    /// Makes the call and learns the request's number.
    async fn begin<F, R>(&mut self, call: F) -> Result<(), Error>
    where
        F: FnOnce(Dbus) -> R,
        R: Future<Output = Result<OwnedObjectPath, Error>>,
    {
        let path = call(self.dbus.clone()).await?;
        if path.as_str() != self.path {
            return Err(Error::Unexpected(format!(
                "the request is at {path}, not at {}",
                self.path
            )));
        }
        let id: Result<OwnedVariant, Error> = self
            .dbus
            .call_at(&self.path, "org.freedesktop.DBus.Properties", "Get", &(REQUEST, "Id"))
            .await;
        // Only a label: a request that has one goes on without.
        self.id = id.ok().and_then(|id| id.try_into().ok()).unwrap_or_default();
        Ok(())
    }

    /// Passes events on until the last, or until nobody reads them.
    async fn run(mut self, events: &mpsc::UnboundedSender<Result<GenerateEvent, Error>>) {
        loop {
            let event = tokio::select! {
                // In this order: what came before the daemon left is still an event.
                biased;
                () = events.closed() => return self.give_up().await,
                signal = self.signals.next() => match signal {
                    Some(Ok(signal)) => convert::event(&signal),
                    Some(Err(error)) => Err(error.into()),
                    None => Err(Error::disconnected()),
                },
                () = self.owner.gone() => Err(Error::disconnected()),
            };
            let event = match event {
                Ok(Some(event)) => Ok(event),
                Ok(None) => continue,
                Err(error) => Err(error),
            };
            let last = !matches!(&event, Ok(event) if !matches!(event, Event::Finished(_)));
            let id = self.id;
            let event = event.map(|event| GenerateEvent { request_id: id, event: Some(event) });
            if events.send(event).is_err() {
                return self.give_up().await;
            }
            if last {
                return;
            }
        }
    }

    async fn give_up(&self) {
        if !self.cancel {
            return;
        }
        // Nobody is left to tell that it failed; the daemon ends the request of a caller that leaves
        // the bus in any case. No reply is asked for: a bus bounds the replies that one connection
        // waits for, and a client that drops many requests at once would leave some running.
        let cancel = Message::method_call(self.path.as_str(), "Cancel")
            .destination(NAME)
            .interface(REQUEST)
            .with_flags(Flags::NO_REPLY_EXPECTED)
            .build(&());
        if let Ok(cancel) = cancel {
            let _ = self.dbus.connection.send(&cancel).await;
        }
    }
}
