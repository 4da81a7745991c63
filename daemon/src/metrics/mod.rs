//! What is counted while the daemon runs: requests and their times, tokens, changes of the size, energy.
//! docs/metrics.md is the table.
//!
//! [`Metrics`] belongs to the service. A request's stream has a [`Recorder`], the governor tells changes,
//! and `api::metrics` shows it all to whoever scrapes. The values of labels come from closed sets or from
//! the model's table of sizes, never from a client.

mod sizes;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::types::{Error, Event, Priority};
use sizes::Sizes;

/// From a free engine to a queue of minutes, in seconds.
const QUEUE: [f64; 13] =
    [0.001, 0.005, 0.02, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];
/// From a cached prompt to a long one on a slow device, in seconds.
const TTFT: [f64; 14] =
    [0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 20.0, 60.0, 300.0];
/// From 200 tokens a second to one in five seconds, in seconds.
const INTER_TOKEN: [f64; 14] =
    [0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0];

type Seconds = Counter<f64, AtomicU64>;
type Joules = Counter<f64, AtomicU64>;
type Histograms = Family<Class, Histogram, fn() -> Histogram>;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Ended {
    outcome: &'static str,
    priority: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Class {
    priority: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Switch {
    cause: &'static str,
    from: String,
    to: String,
}

/// All counts of the daemon. One instance, shared.
#[derive(Debug)]
pub struct Metrics {
    requests: Family<Ended, Counter>,
    all_requests: Counter,
    queue: Histograms,
    ttft: Histograms,
    inter_token: Histograms,
    tokens: Family<Kind, Counter>,
    prompt: Counter,
    cached: Counter,
    completion: Counter,
    switches: Family<Switch, Counter>,
    sizes: Sizes,
    /// Without labels; there is no series before the first energy is known.
    energy: Family<[(&'static str, &'static str); 0], Joules>,
}

impl Default for Metrics {
    fn default() -> Self {
        let tokens = Family::<Kind, Counter>::default();
        let kind = |kind| tokens.get_or_create_owned(&Kind { kind });
        Self {
            requests: Family::default(),
            all_requests: Counter::default(),
            queue: Family::new_with_constructor(|| Histogram::new(QUEUE)),
            ttft: Family::new_with_constructor(|| Histogram::new(TTFT)),
            inter_token: Family::new_with_constructor(|| Histogram::new(INTER_TOKEN)),
            prompt: kind("prompt"),
            cached: kind("cached"),
            completion: kind("completion"),
            tokens,
            switches: Family::default(),
            sizes: Sizes::default(),
            energy: Family::default(),
        }
    }
}

impl Metrics {
    /// What counts a request of this priority that was accepted.
    #[must_use]
    pub fn recorder(self: &Arc<Self>, priority: Priority) -> Recorder {
        let class = Class { priority: priority.name() };
        Recorder {
            queue: self.queue.get_or_create_owned(&class),
            ttft: self.ttft.get_or_create_owned(&class),
            inter_token: self.inter_token.get_or_create_owned(&class),
            metrics: Arc::clone(self),
            class,
        }
    }

    /// A request was refused before it was accepted. None: it was too malformed to have a priority.
    pub fn refused(&self, priority: Option<Priority>, error: &Error) {
        self.ended(error.name(), priority.map_or("unknown", Priority::name));
    }

    fn ended(&self, outcome: &'static str, priority: &'static str) {
        self.all_requests.inc();
        self.requests.get_or_create(&Ended { outcome, priority }).inc();
    }

    /// The size changed.
    pub fn switched(&self, cause: &'static str, from: &str, to: &str) {
        let from = self.sizes.label(from);
        let to = self.sizes.label(to);
        self.switches.get_or_create(&Switch { cause, from, to }).inc();
    }

    /// From now on this size is in memory; None: no model is.
    pub fn size_in_use(&self, size: Option<&str>) {
        self.sizes.in_use(size);
    }

    /// So much left the batteries while requests ran, since the last call.
    pub fn energy(&self, joules: f64) {
        if joules > 0.0 {
            self.energy.get_or_create(&[]).inc_by(joules);
        }
    }

    /// Requests that ended or were refused since the start.
    #[must_use]
    pub fn ended_requests(&self) -> u64 {
        self.all_requests.get()
    }

    /// Tokens that were made since the start.
    #[must_use]
    pub fn completion_tokens(&self) -> u64 {
        self.completion.get()
    }

    /// Adds the counts to what is scraped.
    pub fn register(&self, registry: &mut Registry) {
        let queue = "Time from a request's acceptance to the start of its prefill";
        let ttft = "Time from a request's acceptance to its first token";
        let inter = "Time between two tokens of a request";
        registry.register(
            "requests",
            "Requests that ended, or were refused, by outcome",
            self.requests.clone(),
        );
        registry.register_with_unit("queue", queue, Unit::Seconds, self.queue.clone());
        registry.register_with_unit("ttft", ttft, Unit::Seconds, self.ttft.clone());
        registry.register_with_unit("inter_token", inter, Unit::Seconds, self.inter_token.clone());
        registry.register(
            "tokens",
            "Tokens of prompts, those of them that came from a cache, and tokens made",
            self.tokens.clone(),
        );
        registry.register("switches", "Changes of the size by cause", self.switches.clone());
        registry.register_with_unit(
            "size",
            "Time that a size was in memory",
            Unit::Seconds,
            self.sizes.family(),
        );
        registry.register_with_unit(
            "energy",
            "Energy that left the batteries while requests ran, the whole device's",
            Unit::Joules,
            self.energy.clone(),
        );
    }

    /// Brings counts of time up to now, before they are read.
    pub fn settle(&self) {
        self.sizes.settle();
    }
}

/// Counts one request. Its stream holds it.
#[derive(Debug)]
pub struct Recorder {
    metrics: Arc<Metrics>,
    class: Class,
    queue: Histogram,
    ttft: Histogram,
    inter_token: Histogram,
}

impl Recorder {
    /// The prompt begins to be read, so long after the request was accepted.
    pub fn began(&self, queued: Duration, prompt_tokens: u32, cached_tokens: u32) {
        self.queue.observe(queued.as_secs_f64());
        self.metrics.prompt.inc_by(prompt_tokens.into());
        self.metrics.cached.inc_by(cached_tokens.into());
    }

    /// The first token is there, so long after the request was accepted; `tokens` with those that came
    /// with it.
    pub fn first(&self, since_accepted: Duration, tokens: u32) {
        self.ttft.observe(since_accepted.as_secs_f64());
        self.metrics.completion.inc_by(tokens.into());
    }

    /// More tokens are there, so long after the last ones.
    pub fn more(&self, gap: Duration, tokens: u32) {
        for _ in 0..tokens {
            self.inter_token.observe(gap.as_secs_f64() / f64::from(tokens));
        }
        self.metrics.completion.inc_by(tokens.into());
    }

    /// The request's last event; any other is passed over.
    pub fn ended(&self, event: &Event) {
        let outcome = match event {
            Event::Finished(finished) => finished.reason.name(),
            Event::Failed(error) => error.name(),
            _ => return,
        };
        self.metrics.ended(outcome, self.class.priority);
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;
    use crate::types::{FinishReason, Finished, Text};

    #[test]
    fn what_happens_is_counted_by_outcome_and_priority() {
        let metrics = Arc::new(Metrics::default());
        let recorder = metrics.recorder(Priority::Interactive);
        recorder.began(Duration::from_millis(30), 12, 4);
        recorder.first(Duration::from_millis(400), 1);
        recorder.more(Duration::from_millis(60), 3);
        recorder.ended(&Event::Text(Text { delta: "secret".into(), ..Text::default() }));
        let reason = FinishReason::Length;
        recorder.ended(&Event::Finished(Finished { reason, ..Finished::default() }));
        metrics.refused(None, &Error::invalid("messages", "none"));
        metrics.switched("battery", "E4B", "E2B");

        let mut registry = Registry::with_prefix("nestd");
        metrics.register(&mut registry);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            "nestd_requests_total{outcome=\"length\",priority=\"interactive\"} 1",
            "nestd_requests_total{outcome=\"invalid_argument\",priority=\"unknown\"} 1",
            "nestd_queue_seconds_bucket{le=\"0.02\",priority=\"interactive\"} 0",
            "nestd_queue_seconds_bucket{le=\"0.1\",priority=\"interactive\"} 1",
            "nestd_ttft_seconds_count{priority=\"interactive\"} 1",
            "nestd_inter_token_seconds_bucket{le=\"0.02\",priority=\"interactive\"} 3",
            "nestd_tokens_total{kind=\"prompt\"} 12",
            "nestd_tokens_total{kind=\"cached\"} 4",
            "nestd_tokens_total{kind=\"completion\"} 4",
            "nestd_switches_total{cause=\"battery\",from=\"E4B\",to=\"E2B\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
        }
    }
}
