//! Sessions: conversations that the daemon keeps, each with its owner.
//!
//! [`Sessions`] owns the transcripts. What makes a turn fast (the KV cache) is the engine's: it is told
//! when a session ends, and may forget at any time, because the transcript is whole without it. A session
//! ends with its connection, or when it was not used for its time to live; a persistent one belongs to its
//! user instead and is kept on disk (`disk`).
//!
//! A session has one request at a time. The request's [`Turn`] adds question and answer to the transcript
//! when it finishes, before its reader is told; a request that fails leaves the session as it was.

mod disk;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod keeper;

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use self::keeper::Keeper;
use crate::engine::Handle;
use crate::types::{
    Client, Error, Event, Limits, Message, Part, Role, SessionInfo, SessionOptions,
    SessionSettings, check_turns,
};

/// A time to live that is longer than this is none.
const LONGEST_TTL: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// When to ask again for a session that answers.
const RETRY_MS: u64 = 500;

/// All sessions. One instance, which the service owns.
pub struct Sessions {
    state: Mutex<State>,
    /// Changes when a session comes or goes, or is used.
    changed: watch::Sender<()>,
    engine: Handle,
    keeper: Arc<Keeper>,
}

struct State {
    settings: SessionSettings,
    sessions: HashMap<String, Session>,
    /// The number under which the engine knows the next session.
    next: u64,
}

struct Session {
    /// The engine's name for it.
    key: u64,
    owner: Owner,
    ttl: Duration,
    transcript: Vec<Message>,
    used: Instant,
    answering: bool,
    /// It is being removed from disk, and is there for nobody.
    deleted: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Owner {
    /// It ends with this connection. The user is for counting.
    Connection { name: String, user: String },
    /// It is this user's, and kept on disk.
    User(String),
}

impl Owner {
    fn is(&self, client: &Client) -> bool {
        match self {
            Self::Connection { name, .. } => *name == client.name,
            Self::User(user) => client.user().as_ref() == Some(user),
        }
    }

    fn user(&self) -> &str {
        match self {
            Self::Connection { user, .. } | Self::User(user) => user,
        }
    }
}

impl Session {
    fn is_persistent(&self) -> bool {
        matches!(self.owner, Owner::User(_))
    }

    fn info(&self, id: &str) -> SessionInfo {
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        SessionInfo {
            id: id.to_owned(),
            persistent: self.is_persistent(),
            ttl_ms: ms(self.ttl),
            idle_ms: if self.answering { 0 } else { ms(self.used.elapsed()) },
            messages: u32::try_from(self.transcript.len()).unwrap_or(u32::MAX),
            answering: self.answering,
        }
    }
}

impl State {
    /// The caller's session of this name. Another's is as if it were not there.
    fn own(&mut self, client: &Client, id: &str) -> Result<&mut Session, Error> {
        self.sessions
            .get_mut(id)
            .filter(|session| session.owner.is(client) && !session.deleted)
            .ok_or_else(|| Error::SessionNotFound { session: id.to_owned() })
    }

    /// The same, while no request of it waits or runs.
    fn quiet(&mut self, client: &Client, id: &str) -> Result<&mut Session, Error> {
        let session = self.own(client, id)?;
        if session.answering {
            let why = format!("the session {id} answers another request");
            return Err(Error::Busy { why, retry_after_ms: RETRY_MS });
        }
        Ok(session)
    }
}

impl Sessions {
    /// No sessions yet but the persistent ones. To be called on the runtime that the writes run on.
    pub(super) fn new(engine: Handle, settings: SessionSettings) -> Arc<Self> {
        let mut state = State { settings, sessions: HashMap::new(), next: 1 };
        let now = Instant::now();
        for (id, stored, age) in disk::read_all(&state.settings) {
            let key = state.next;
            state.next += 1;
            state.sessions.insert(
                id,
                Session {
                    key,
                    owner: Owner::User(stored.owner),
                    ttl: stored.ttl,
                    transcript: stored.transcript,
                    used: now.checked_sub(age).unwrap_or(now),
                    answering: false,
                    deleted: false,
                },
            );
        }
        let keeper = Arc::new(Keeper::new());
        let sessions = Arc::new(Self {
            state: Mutex::new(state),
            changed: watch::Sender::new(()),
            engine,
            keeper: Arc::clone(&keeper),
        });
        let written = Arc::downgrade(&sessions);
        let write = move |id: &str| written.upgrade().map_or(Ok(()), |sessions| sessions.write(id));
        tokio::spawn(async move { keeper.run(write).await });
        sessions
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies new settings; sessions that are there stay.
    pub(super) fn configure(&self, settings: SessionSettings) {
        self.lock().settings = settings;
    }

    /// Changes when a session comes or goes, or is used.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// The names of all sessions.
    #[must_use]
    pub fn ids(&self) -> Vec<String> {
        self.lock().sessions.keys().cloned().collect()
    }

    /// The caller's sessions, by name.
    #[must_use]
    pub fn list(&self, client: &Client) -> Vec<SessionInfo> {
        let state = self.lock();
        let own = state.sessions.iter().filter(|(_, s)| s.owner.is(client) && !s.deleted);
        let mut list: Vec<_> = own.map(|(id, session)| session.info(id)).collect();
        list.sort_by(|a, b| a.id.cmp(&b.id));
        list
    }

    /// Makes a session that begins with these messages.
    pub(super) async fn create(
        self: &Arc<Self>,
        client: &Client,
        transcript: Vec<Message>,
        options: SessionOptions,
        limits: &Limits,
    ) -> Result<SessionInfo, Error> {
        check_turns(&[], &transcript, limits)?;
        let info = self.insert(client, transcript, options)?;
        if info.persistent
            && let Err(error) = self.keeper.kept(&info.id).await
        {
            let session = self.lock().sessions.remove(&info.id);
            self.gone(session.map(|session| (info.id, session)));
            return Err(error);
        }
        Ok(info)
    }

    fn insert(
        &self,
        client: &Client,
        transcript: Vec<Message>,
        options: SessionOptions,
    ) -> Result<SessionInfo, Error> {
        let user = client.user();
        let mut state = self.lock();
        let owner = match (&user, options.persistent) {
            (_, true) if state.settings.dir.as_os_str().is_empty() => {
                let why = "no folder is configured for them (sessions.dir)";
                return Err(Error::unsupported("a persistent session", why));
            }
            (None, true) => {
                let what = "a persistent session is its user's, and the caller's is not known";
                return Err(Error::NotAllowed { what: what.into() });
            }
            (Some(user), true) => Owner::User(user.clone()),
            (user, false) => Owner::Connection {
                name: client.name.clone(),
                user: user.clone().unwrap_or_else(|| client.name.clone()),
            },
        };
        let of_user = |session: &&Session| session.owner.user() == owner.user();
        let own = state.sessions.values().filter(of_user).count();
        let SessionSettings { total, per_user, ttl, .. } = state.settings;
        for (count, limit, whose) in
            [(own, per_user, "of one user"), (state.sessions.len(), total, "of all users")]
        {
            if count >= limit as usize {
                let what = format!("{limit} sessions {whose} are there: delete one");
                return Err(Error::OverQuota { what, limit: limit.into(), retry_after_ms: 0 });
            }
        }
        let key = state.next;
        state.next += 1;
        let id = std::iter::repeat_with(|| format!("{:016x}", RandomState::new().hash_one(key)))
            .find(|id| !state.sessions.contains_key(id))
            .unwrap_or_default();
        let session = Session {
            key,
            owner,
            ttl: match options.ttl_ms {
                0 => ttl,
                ms => Duration::from_millis(ms).min(LONGEST_TTL),
            },
            transcript,
            used: Instant::now(),
            answering: false,
            deleted: false,
        };
        let info = session.info(&id);
        tracing::info!(session = id, %client, persistent = info.persistent, "session made");
        state.sessions.insert(id, session);
        drop(state);
        self.changed.send_replace(());
        Ok(info)
    }

    /// Makes a session of the caller that goes on from where one of its sessions is.
    pub(super) async fn fork(
        self: &Arc<Self>,
        client: &Client,
        id: &str,
        options: SessionOptions,
        limits: &Limits,
    ) -> Result<SessionInfo, Error> {
        let transcript = self.transcript(client, id)?;
        self.create(client, transcript, options, limits).await
    }

    /// What was said so far.
    pub fn transcript(&self, client: &Client, id: &str) -> Result<Vec<Message>, Error> {
        Ok(self.lock().own(client, id)?.transcript.clone())
    }

    /// Adds messages that nobody answers. When they could not be written to disk, they are there all the
    /// same.
    pub(super) async fn append(
        &self,
        client: &Client,
        id: &str,
        messages: Vec<Message>,
        limits: &Limits,
    ) -> Result<SessionInfo, Error> {
        let info = {
            let mut state = self.lock();
            let session = state.quiet(client, id)?;
            if messages.is_empty() {
                return Err(Error::invalid("messages", "at least one message"));
            }
            check_turns(&session.transcript, &messages, limits)?;
            session.transcript.extend(messages);
            session.used = Instant::now();
            session.info(id)
        };
        self.changed.send_replace(());
        if info.persistent {
            self.keeper.kept(id).await?;
        }
        Ok(info)
    }

    /// Ends a session; a request of it goes on, and is kept nowhere. One that could not be removed from
    /// disk is still there.
    pub async fn delete(self: &Arc<Self>, client: &Client, id: &str) -> Result<(), Error> {
        let persistent = {
            let mut state = self.lock();
            let session = state.own(client, id)?;
            session.deleted = true;
            session.is_persistent()
        };
        let (sessions, id) = (Arc::clone(self), id.to_owned());
        let delete = async move {
            let removed = if persistent { sessions.keeper.kept(&id).await } else { Ok(()) };
            let mut state = sessions.lock();
            if removed.is_err() {
                if let Some(session) = state.sessions.get_mut(&id) {
                    session.deleted = false;
                }
                return removed;
            }
            let session = state.sessions.remove(&id);
            drop(state);
            sessions.gone(session.map(|session| (id, session)));
            Ok(())
        };
        // A caller that leaves in the middle leaves nothing half deleted.
        tokio::spawn(delete).await.map_err(|error| Error::Internal(error.to_string()))?
    }

    /// The connection is closed: its sessions end.
    pub fn left(&self, connection: &str) {
        self.remove(|session| {
            matches!(&session.owner, Owner::Connection { name, .. } if name == connection)
        });
    }

    /// Ends sessions that were not used for their time to live, for as long as the daemon runs.
    pub async fn expire(self: Arc<Self>) {
        let mut changed = self.changed.subscribe();
        loop {
            let expired =
                |session: &Session| !session.answering && session.used.elapsed() >= session.ttl;
            self.remove(expired);
            let next = {
                let state = self.lock();
                let quiet = state.sessions.values().filter(|session| !session.answering);
                quiet.map(|session| session.ttl.saturating_sub(session.used.elapsed())).min()
            };
            tokio::select! {
                changed = changed.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(next.unwrap_or(Duration::MAX)) => {}
            }
        }
    }

    /// Begins a request of a session, whose only one it is until the turn is over.
    pub(super) fn turn(
        self: &Arc<Self>,
        client: &Client,
        id: &str,
        question: Vec<Message>,
    ) -> Result<(Turn, Vec<Message>), Error> {
        let mut state = self.lock();
        let session = state.quiet(client, id)?;
        session.answering = true;
        let transcript = session.transcript.clone();
        let key = session.key;
        drop(state);
        self.changed.send_replace(());
        let sessions = Arc::clone(self);
        Ok((Turn { sessions, id: id.to_owned(), key, question, said: false }, transcript))
    }

    /// Completes when everything is on disk; for the daemon's stop.
    pub async fn kept(&self) {
        self.keeper.done().await;
    }

    fn remove(&self, which: impl Fn(&Session) -> bool) {
        let removed: Vec<_> =
            self.lock().sessions.extract_if(|_, session| which(session)).collect();
        for (id, session) in &removed {
            if session.is_persistent() {
                self.keeper.keep(id);
            }
        }
        self.gone(removed);
    }

    /// Tells everybody that sessions are gone.
    fn gone(&self, sessions: impl IntoIterator<Item = (String, Session)>) {
        let mut any = false;
        for (id, session) in sessions {
            any = true;
            tracing::info!(session = id, "session ended");
            self.engine.forget(session.key);
        }
        if any {
            self.changed.send_replace(());
        }
    }

    /// Brings the disk to how things are now. Takes as long as the disk does.
    fn write(&self, id: &str) -> Result<(), Error> {
        let state = self.lock();
        let dir = state.settings.dir.clone();
        let stored = state.sessions.get(id).and_then(|session| match &session.owner {
            Owner::User(owner) if !session.deleted => Some(disk::Stored {
                owner: owner.clone(),
                ttl: session.ttl,
                transcript: session.transcript.clone(),
            }),
            Owner::User(_) | Owner::Connection { .. } => None,
        });
        drop(state);
        disk::write(&dir, id, stored.as_ref()).map_err(|error| {
            tracing::error!(session = id, dir = %dir.display(), %error, "not kept on disk");
            let dir = dir.display();
            Error::Internal(format!("the session {id} was not written to {dir}: {error}"))
        })
    }
}

/// A request of a session, from its acceptance to its end. Dropping it leaves the session as it was.
pub(super) struct Turn {
    sessions: Arc<Sessions>,
    id: String,
    /// The session, as the engine knows it.
    pub(super) key: u64,
    question: Vec<Message>,
    /// Whether the transcript grew.
    said: bool,
}

impl Turn {
    /// The request has ended: what was said is kept, unless it failed, or ended before the answer began.
    pub(super) fn end(mut self, event: &Event, answer: String) {
        let Event::Finished(finished) = event else { return };
        if answer.is_empty() && !finished.reason.is_whole() {
            return;
        }
        let question = std::mem::take(&mut self.question);
        let answer = Message { role: Role::Assistant, parts: vec![Part::Text(answer)] };
        if let Some(session) = self.sessions.lock().sessions.get_mut(&self.id) {
            session.transcript.extend(question);
            session.transcript.push(answer);
            self.said = true;
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.sessions.lock();
        let Some(session) = state.sessions.get_mut(&self.id) else {
            drop(state);
            // It ended meanwhile, and the engine may keep what this request leaves.
            return self.sessions.engine.forget(self.key);
        };
        session.answering = false;
        session.used = Instant::now();
        let changed = self.said && session.is_persistent();
        drop(state);
        self.sessions.changed.send_replace(());
        if changed {
            self.sessions.keeper.keep(&self.id);
        }
    }
}
