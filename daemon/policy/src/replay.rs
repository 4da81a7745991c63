//! A recorded day, decided again: what the governor would have done.

use std::time::Duration;

use crate::decide::{Decision, Inputs, decide};
use crate::holds::Holds;
use crate::ladder::Ladder;
use crate::settings::Settings;
use crate::trace::Point;

/// One decision that differs from the one before it in what a client or a person would notice.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Since the start of the trace.
    pub at: Duration,
    /// The size before; None at the start.
    pub from: Option<String>,
    /// What was decided.
    pub decision: Decision,
}

/// Decides at every point of a trace, and between them whenever a decision asks to be looked at again.
/// Requests are taken to come all the time, so nothing idles.
#[derive(Clone, Debug)]
pub struct Replay<'a> {
    settings: &'a Settings,
    ladder: &'a Ladder,
    holds: &'a Holds,
    last: Option<(Point, Decision)>,
}

impl<'a> Replay<'a> {
    /// Before the first point.
    #[must_use]
    pub fn new(settings: &'a Settings, ladder: &'a Ladder, holds: &'a Holds) -> Self {
        Self { settings, ladder, holds, last: None }
    }

    /// Takes the next point, whose time is not before the last one's; gives the steps up to it.
    pub fn point(&mut self, point: Point) -> Vec<Step> {
        let mut steps = Vec::new();
        let again = |last: &Option<(Point, Decision)>| {
            let (before, decision) = last.as_ref()?;
            let at = before.at.saturating_add(decision.again_in?);
            (at < point.at).then(|| Point { at, snapshot: before.snapshot.clone() })
        };
        while let Some(between) = again(&self.last) {
            steps.extend(self.step(between));
        }
        steps.extend(self.step(point));
        steps
    }

    fn step(&mut self, point: Point) -> Option<Step> {
        let inputs = Inputs {
            snapshot: &point.snapshot,
            holds: self.holds,
            ladder: self.ladder,
            idle: None,
        };
        let before = self.last.take().map(|(_, decision)| decision);
        let decision = decide(self.settings, &inputs, before.as_ref(), point.at);
        let at = point.at;
        self.last = Some((point, decision.clone()));
        let shown = |d: &Decision| (d.size.clone(), d.shed, d.park, d.background_allowed);
        let same = before.as_ref().is_some_and(|before| shown(before) == shown(&decision));
        (!same).then(|| Step { at, from: before.map(|before| before.size), decision })
    }
}
