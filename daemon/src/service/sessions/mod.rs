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

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use crate::engine::Handle;
use crate::types::{
    Client, Error, Event, Limits, Message, Part, Role, SessionInfo, SessionOptions,
    SessionSettings, check_turns,
};

/// A time to live that is longer than this is none.
const LONGEST_TTL: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How often an engine that is busy is told again of a session that ended.
const FORGET: Duration = Duration::from_millis(200);
/// When to ask again for a session that answers.
const RETRY_MS: u64 = 500;

/// All sessions. One instance, which the service owns.
pub struct Sessions {
    state: Mutex<State>,
    /// Changes when a session comes or goes, or is used.
    changed: watch::Sender<()>,
    engine: Handle,
    /// Held while a file is written.
    writing: Mutex<()>,
    /// What is still to be written, and where it is: an engine's thread may call too.
    writes: TaskTracker,
    runtime: runtime::Handle,
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
            .filter(|session| session.owner.is(client))
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
        for (id, stored) in disk::read_all(&state.settings) {
            let key = state.next;
            state.next += 1;
            state.sessions.insert(
                id,
                Session {
                    key,
                    owner: Owner::User(stored.owner),
                    ttl: stored.ttl,
                    transcript: stored.transcript,
                    used: Instant::now(),
                    answering: false,
                },
            );
        }
        Arc::new(Self {
            state: Mutex::new(state),
            changed: watch::Sender::new(()),
            engine,
            writing: Mutex::default(),
            writes: TaskTracker::new(),
            runtime: runtime::Handle::current(),
        })
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
        let own = state.sessions.iter().filter(|(_, session)| session.owner.is(client));
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
        if info.persistent {
            self.keep(&info.id).await.map_err(|error| Error::Internal(error.to_string()))??;
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

    /// Adds messages that nobody answers.
    pub(super) fn append(
        self: &Arc<Self>,
        client: &Client,
        id: &str,
        messages: Vec<Message>,
        limits: &Limits,
    ) -> Result<SessionInfo, Error> {
        let mut state = self.lock();
        let session = state.quiet(client, id)?;
        check_turns(&session.transcript, &messages, limits)?;
        session.transcript.extend(messages);
        session.used = Instant::now();
        let info = session.info(id);
        drop(state);
        self.used(id, info.persistent);
        Ok(info)
    }

    /// Ends a session; a request of it goes on, and is kept nowhere.
    pub async fn delete(self: &Arc<Self>, client: &Client, id: &str) -> Result<(), Error> {
        let session = {
            let mut state = self.lock();
            state.own(client, id)?;
            state.sessions.remove(id)
        };
        let persistent = session.as_ref().is_some_and(Session::is_persistent);
        self.gone(session.map(|session| (id.to_owned(), session)));
        if persistent {
            self.keep(id).await.map_err(|error| Error::Internal(error.to_string()))??;
        }
        Ok(())
    }

    /// The connection is closed: its sessions end.
    pub fn left(self: &Arc<Self>, connection: &str) {
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
        Ok((Turn { sessions: Arc::clone(self), id: id.to_owned(), key, question }, transcript))
    }

    /// Completes when everything is on disk; for the daemon's stop.
    pub async fn kept(&self) {
        self.writes.close();
        self.writes.wait().await;
    }

    fn remove(self: &Arc<Self>, which: impl Fn(&Session) -> bool) {
        let removed: Vec<_> =
            self.lock().sessions.extract_if(|_, session| which(session)).collect();
        for (id, session) in &removed {
            if session.is_persistent() {
                self.keep(id);
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
            self.forget(session.key);
        }
        if any {
            self.changed.send_replace(());
        }
    }

    /// Has the engine forget a session that ended. One that is too busy to hear of it is told again: what
    /// was said shall not stay.
    fn forget(&self, key: u64) {
        let engine = self.engine.clone();
        if let Err(Error::Busy { .. }) = engine.forget(key) {
            self.runtime.spawn(async move {
                while let Err(Error::Busy { .. }) = engine.forget(key) {
                    tokio::time::sleep(FORGET).await;
                }
            });
        }
    }

    /// A session has changed.
    fn used(self: &Arc<Self>, id: &str, persistent: bool) {
        self.changed.send_replace(());
        if persistent {
            self.keep(id);
        }
    }

    /// Brings the disk to how things are by then; the task's result is what came of it.
    fn keep(self: &Arc<Self>, id: &str) -> JoinHandle<Result<(), Error>> {
        let (sessions, id) = (Arc::clone(self), id.to_owned());
        let write = move || {
            // One after the other, each with what is there by then: the last one is right.
            let _writing = sessions.writing.lock().unwrap_or_else(PoisonError::into_inner);
            let state = sessions.lock();
            let dir = state.settings.dir.clone();
            let stored = state.sessions.get(&id).and_then(|session| match &session.owner {
                Owner::User(owner) => Some(disk::Stored {
                    owner: owner.clone(),
                    ttl: session.ttl,
                    transcript: session.transcript.clone(),
                }),
                Owner::Connection { .. } => None,
            });
            drop(state);
            disk::write(&dir, &id, stored.as_ref()).map_err(|error| {
                tracing::error!(session = id, dir = %dir.display(), %error, "not kept on disk");
                let dir = dir.display();
                Error::Internal(format!("the session {id} was not written to {dir}: {error}"))
            })
        };
        self.writes.spawn_blocking_on(write, &self.runtime)
    }
}

/// A request of a session, from its acceptance to its end. Dropping it leaves the session as it was.
pub(super) struct Turn {
    sessions: Arc<Sessions>,
    id: String,
    /// The session, as the engine knows it.
    pub(super) key: u64,
    question: Vec<Message>,
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
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.sessions.lock();
        let Some(session) = state.sessions.get_mut(&self.id) else {
            drop(state);
            // It ended meanwhile, and the engine may keep what this request leaves.
            return self.sessions.forget(self.key);
        };
        session.answering = false;
        session.used = Instant::now();
        let persistent = session.is_persistent();
        drop(state);
        self.sessions.used(&self.id, persistent);
    }
}
