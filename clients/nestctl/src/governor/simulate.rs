//! `nestctl governor simulate`: a recorded day, decided again.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::time::Duration;

use nestd_policy::decide::Shed;
use nestd_policy::file;
use nestd_policy::holds::Holds;
use nestd_policy::ladder::Ladder;
use nestd_policy::replay::{Replay, Step};
use nestd_policy::trace::{self, Point};
use serde_json::json;

use super::{open, plot};
use crate::args::SimulateArgs;
use crate::problem::Problem;
use crate::render::Screen;

/// Replays a trace.
pub fn simulate(args: &SimulateArgs, ladder: &Ladder, screen: &mut Screen) -> Result<(), Problem> {
    let mut changes = String::new();
    if let Some(path) = &args.config {
        let read = open(path)?.read_to_string(&mut changes);
        read.map_err(|error| Problem::Usage(format!("{}: {error}", path.display())))?;
    }
    let settings = file::settings(&args.profile, &changes);
    let settings = settings.map_err(|problems| Problem::Usage(problems.join("\n")))?;
    let holds = Holds { holds: Vec::new(), pin: args.pin.clone() };
    if args.pin.is_some() && holds.pin(ladder).is_none() {
        let names: Vec<_> = ladder.rungs.iter().map(|rung| rung.name.as_str()).collect();
        let problem = format!("--pin: the model has no such size; it has {}", names.join(", "));
        return Err(Problem::Usage(problem));
    }
    let name = args.trace.display().to_string();
    let wrong = |error: trace::Error| Problem::Usage(format!("{name}: {error}"));
    let mut replay = Replay::new(&settings, ladder, &holds);
    let mut day = Day::default();
    for point in trace::read(open(&args.trace)?).map_err(wrong)? {
        let point = point.map_err(wrong)?;
        for step in replay.point(point.clone()) {
            print(&step, screen)?;
            day.steps.push(step);
        }
        day.points.push(point);
    }
    if day.points.is_empty() {
        return Err(Problem::Usage(format!("{name}: there is no line but the header")));
    }
    if !screen.json {
        screen.text(&day.summary(ladder))?;
    }
    if let Some(path) = &args.plot {
        let drawn = plot::draw(&day, ladder);
        let drawn = drawn.map_err(|error| Problem::Io(format!("the plot: {error}")))?;
        std::fs::write(path, drawn)
            .map_err(|error| Problem::Io(format!("{}: {error}", path.display())))?;
    }
    Ok(())
}

/// A trace with what was decided.
#[derive(Default)]
pub struct Day {
    pub points: Vec<Point>,
    pub steps: Vec<Step>,
}

impl Day {
    /// When it ends.
    pub fn end(&self) -> Duration {
        self.points.last().map_or(Duration::ZERO, |point| point.at)
    }

    /// When it begins.
    pub fn start(&self) -> Duration {
        self.points.first().map_or(Duration::ZERO, |point| point.at)
    }

    fn summary(&self, ladder: &Ladder) -> String {
        let mut spent: BTreeMap<usize, Duration> = BTreeMap::new();
        let ends = self.steps.iter().skip(1).map(|step| step.at).chain([self.end()]);
        for (step, end) in self.steps.iter().zip(ends) {
            let place = ladder.index(&step.decision.size).unwrap_or(0);
            *spent.entry(place).or_default() += end.saturating_sub(step.at);
        }
        let changes = self.steps.iter().filter(|step| moved(step)).count();
        let all = self.end().saturating_sub(self.start()).as_secs_f64().max(f64::MIN_POSITIVE);
        let shares = spent.iter().map(|(place, time)| {
            format!("{} {:.0} %", ladder.name(*place), time.as_secs_f64() / all * 100.0)
        });
        let shares: Vec<_> = shares.collect();
        format!(
            "\n{changes} changes of the size in {}; {}\n",
            clock(self.end().saturating_sub(self.start())),
            shares.join(", ")
        )
    }
}

/// Whether the step changes the size.
fn moved(step: &Step) -> bool {
    step.from.as_ref().is_some_and(|from| *from != step.decision.size)
}

/// Hours, minutes and seconds.
pub fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

fn print(step: &Step, screen: &mut Screen) -> Result<(), Problem> {
    let decision = &step.decision;
    if screen.json {
        screen.value(&json!({
            "t_s": step.at.as_secs_f64(),
            "from": step.from,
            "to": decision.size,
            "level": decision.level.name(),
            "cause": decision.cause.name(),
            "reason": decision.reason,
            "background_allowed": decision.background_allowed,
            "shed": decision.shed.name(),
            "park": decision.park,
            "next_threshold": decision.next_threshold,
        }))?;
        return Ok(());
    }
    let size = match &step.from {
        Some(from) if moved(step) => format!("{from} -> {}", decision.size),
        _ => decision.size.clone(),
    };
    let mut line = format!("{:>9}  {size}  {}", clock(step.at), decision.reason);
    if !decision.background_allowed {
        line += "; no background requests";
    }
    line += match decision.shed {
        Shed::Nothing => "",
        Shed::Caches => "; caches given back",
        Shed::Context => "; caches and context given back",
        Shed::Size => "; caches, context and size given back",
        Shed::Background => "; one request at a time",
        Shed::Model => "; the model leaves memory",
    };
    screen.line(&line)?;
    screen.line(&format!("{:>9}  next: {}", "", decision.next_threshold))?;
    Ok(())
}
