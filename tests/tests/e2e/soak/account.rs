//! What the clients saw, and what the daemon says of it: both must agree that every request ended once.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard};

use nestd_client::Error;
use nestd_client::v1::FinishReason;
use nestd_tests::Daemon;

/// What all clients saw.
#[derive(Default)]
pub struct Account(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    /// How often each was done.
    deeds: BTreeMap<&'static str, u64>,
    /// How the requests ended that were read to their end, by word.
    ends: BTreeMap<String, u64>,
    /// How calls were refused, by word.
    refusals: BTreeMap<String, u64>,
    /// What should not have been.
    wrong: Vec<String>,
}

impl Account {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap()
    }

    pub fn did(&self, deed: &'static str) {
        *self.lock().deeds.entry(deed).or_default() += 1;
    }

    pub fn finished(&self, reason: FinishReason) {
        let word = reason.as_str_name().trim_start_matches("FINISH_REASON_").to_owned();
        *self.lock().ends.entry(word).or_default() += 1;
    }

    /// An accepted request failed.
    pub fn failed(&self, error: &Error) {
        match error.reason() {
            Some(reason) => *self.lock().ends.entry(reason.as_str_name().into()).or_default() += 1,
            None => self.wrong(format!("an end that is not typed: {error}")),
        }
    }

    /// A call was refused.
    pub fn refused(&self, error: &Error) {
        let reason = error.reason();
        match reason {
            Some(reason) => {
                *self.lock().refusals.entry(reason.as_str_name().into()).or_default() += 1;
            }
            None => self.wrong(format!("a refusal that is not typed: {error}")),
        }
    }

    pub fn wrong(&self, what: String) {
        self.lock().wrong.push(what);
    }

    pub fn check(&self) {
        let seen = self.lock();
        assert!(seen.wrong.is_empty(), "{} wrong: {:#?}", seen.wrong.len(), seen.wrong);
        for deed in super::client::DEEDS {
            assert!(seen.deeds.contains_key(deed), "nobody did {deed:?}: {:?}", seen.deeds);
        }
        for end in ["STOP", "LENGTH", "DEADLINE", "LAGGED"] {
            assert!(seen.ends.contains_key(end), "none ended as {end}: {:?}", seen.ends);
        }
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seen = self.lock();
        writeln!(f, "what clients did: {:?}", seen.deeds)?;
        writeln!(f, "ends that they read: {:?}", seen.ends)?;
        write!(f, "refusals: {:?}; wrong: {}", seen.refusals, seen.wrong.len())
    }
}

/// The log's lines about requests, sessions and holds.
#[derive(Default)]
pub struct Log {
    /// How often each accepted request ended.
    requests: HashMap<u64, u64>,
    /// Ends of loads, which are numbered too and not accepted.
    loads: u64,
    sessions: [u64; 2],
    holds: [u64; 2],
    panics: u64,
}

impl Log {
    pub fn read(text: &str) -> Self {
        let mut log = Self::default();
        for line in text.lines() {
            let request = |word: &str| {
                let (_, rest) = line.split_once(word)?;
                let number: String = rest.chars().take_while(char::is_ascii_digit).collect();
                number.parse::<u64>().ok()
            };
            if let Some(id) = request(" accepted request=") {
                log.requests.entry(id).or_default();
            } else if let Some(id) =
                request(" finished request=").or_else(|| request(" failed request="))
            {
                match log.requests.get_mut(&id) {
                    Some(ends) => *ends += 1,
                    None => log.loads += 1,
                }
            } else {
                let count = |words: &str| u64::from(line.contains(words));
                log.sessions[0] += count(" session made ");
                log.sessions[1] += count(" session ended ");
                log.holds[0] += count(" held hold=");
                log.holds[1] += count(" released hold=");
                log.panics += count("panicked at");
            }
        }
        log
    }

    fn accepted(&self) -> u64 {
        self.requests.len() as u64
    }

    pub fn check(&self) {
        assert!(self.accepted() > 100, "{self}");
        let other = self.requests.iter().find(|(_, ends)| **ends != 1);
        assert_eq!(other, None, "a request that did not end once");
        // The model was loaded at the start, and by nobody after.
        assert_eq!((self.loads, self.panics), (1, 0), "{self}");
        assert!(self.sessions[0] > 0 && self.holds[0] > 0, "{self}");
        assert_eq!(self.sessions[0], self.sessions[1], "sessions made and ended");
        assert_eq!(self.holds[0], self.holds[1], "holds made and released");
    }
}

impl fmt::Display for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} requests accepted, {} ends; {} sessions made, {} ended; {} holds made, {} released",
            self.accepted(),
            self.requests.values().sum::<u64>(),
            self.sessions[0],
            self.sessions[1],
            self.holds[0],
            self.holds[1],
        )
    }
}

/// The daemon's own count of ends is that of the log, and of refusals that of the clients at least.
pub fn check_metrics(daemon: &Daemon, log: &Log, account: &Account) {
    let mut socket = UnixStream::connect(daemon.metrics_socket()).unwrap();
    socket.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).unwrap();
    let mut outcomes = BTreeMap::<String, u64>::new();
    for line in text.lines() {
        let Some(labels) = line.strip_prefix("nestd_requests_total{outcome=\"") else { continue };
        let outcome = labels.split('"').next().unwrap();
        let count: u64 = labels.rsplit(' ').next().unwrap().parse().unwrap();
        *outcomes.entry(outcome.to_owned()).or_default() += count;
    }
    println!("nestd_requests_total: {outcomes:?}");
    // These refuse a request, and never end one that was accepted here: but for `busy`, which ends what waits
    // at priority background when it is no longer taken.
    let refusals = [
        "invalid_argument",
        "queue_full",
        "busy",
        "over_quota",
        "session_not_found",
        "unsupported",
    ];
    let ended = outcomes.iter().filter(|(outcome, _)| !refusals.contains(&outcome.as_str()));
    let ended: u64 = ended.map(|(_, count)| count).sum();
    let busy = outcomes.get("busy").copied().unwrap_or(0);
    assert!((ended..=ended + busy).contains(&log.accepted()), "{outcomes:?}");
    assert_eq!(outcomes.get("internal"), None, "{outcomes:?}");
    let seen = account.lock();
    let full = outcomes.get("queue_full").copied().unwrap_or(0);
    assert!(full >= seen.refusals.get("QUEUE_FULL").copied().unwrap_or(0), "{outcomes:?}");
}
