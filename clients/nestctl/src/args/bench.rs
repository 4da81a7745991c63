//! `bench`: a model in this process, or the daemon with many clients.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use nestd_client::v1::Priority;

use super::local::Kv;

/// The most tokens that one request may be measured with.
const MOST_TOKENS: u32 = 1 << 20;

#[derive(Args)]
pub struct BenchArgs {
    /// Measure this model in this process, without the daemon
    #[arg(long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    /// Tokens of a prompt, which is random; without --model also two numbers as in 16..512, to draw from
    #[arg(long, value_name = "N", default_value = "128", value_parser = tokens)]
    pub prompt_tokens: RangeInclusive<u32>,
    /// Tokens to make; without --model the most, and also two numbers
    #[arg(long, value_name = "N", default_value = "64", value_parser = tokens)]
    pub max_tokens: RangeInclusive<u32>,
    #[command(flatten)]
    pub daemon: DaemonArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// The load that the daemon is put under.
#[derive(Args)]
#[command(next_help_heading = "The daemon's load")]
pub struct DaemonArgs {
    /// This many clients, each with a connection of its own, each asking again once it is answered
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=10_000), conflicts_with = "model")]
    pub clients: u32,
    /// Share the clients among priorities by these weights, such as interactive=1,background=5
    #[arg(long, value_name = "MIX", default_value = "normal", value_parser = mix, conflicts_with = "model")]
    pub priority: Mix,
    /// Stop after so many seconds; what is unanswered then is cancelled [default: 10, without --requests]
    #[arg(long, value_name = "S", value_parser = seconds, conflicts_with = "model")]
    pub duration: Option<f64>,
    /// Stop after so many answers to all clients together
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), conflicts_with = "model")]
    pub requests: Option<u64>,
    /// Have each client wait so long after an answer, or between two such numbers
    #[arg(long, value_name = "MS", default_value = "0", value_parser = pause, conflicts_with = "model")]
    pub pause_ms: RangeInclusive<u32>,
    /// With --dbus or --bus: take the text through a pipe
    #[arg(long, conflicts_with = "model")]
    pub fd: bool,
    /// Other numbers make other prompts, lengths and pauses
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "model")]
    pub seed: u64,
}

/// How a model is measured in this process.
#[derive(Args)]
#[command(next_help_heading = "With --model")]
pub struct EngineArgs {
    /// What computes
    #[arg(long, value_enum, default_value_t = Engine::Elastic, requires = "model")]
    pub engine: Engine,
    /// The MatFormer size [default: the largest]
    #[arg(long, value_name = "NAME", requires = "model")]
    pub size: Option<String>,
    /// What keys and values are stored as
    #[arg(long, value_enum, default_value_t, requires = "model")]
    pub kv: Kv,
    /// With a side file (elastic.side_file), which is made if it is not there
    #[arg(long, value_name = "FILE", requires = "model")]
    pub side_file: Option<PathBuf>,
    /// Computing threads, 0 for one a core
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=1024), requires = "model")]
    pub threads: u32,
    /// Measure this many times
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000), requires = "model")]
    pub repeat: u32,
    /// Switch to the other size, and back, after this many tokens
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), requires = "model")]
    pub switch_every: Option<u32>,
    /// The other size [default: the smallest]
    #[arg(long, value_name = "NAME", requires = "switch_every")]
    pub switch_to: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    /// Nestd's own engine, in this process
    Elastic,
}

/// Priorities with their weights, in the order of their urgency.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mix(Vec<(Priority, u32)>);

impl Mix {
    /// The priority of each client. None where one has no client.
    pub fn share(&self, clients: u32) -> Option<Vec<Priority>> {
        let total: i64 = self.0.iter().map(|(_, weight)| i64::from(*weight)).sum();
        // Each client goes to who is owed most.
        let mut owed = vec![0; self.0.len()];
        let mut shared = Vec::new();
        for _ in 0..clients {
            for (owed, (_, weight)) in owed.iter_mut().zip(&self.0) {
                *owed += i64::from(*weight);
            }
            let (owed, (priority, _)) =
                owed.iter_mut().zip(&self.0).rev().max_by_key(|(owed, _)| **owed)?;
            *owed -= total;
            shared.push(*priority);
        }
        self.0.iter().all(|(priority, _)| shared.contains(priority)).then_some(shared)
    }

    /// The priorities.
    pub fn priorities(&self) -> impl Iterator<Item = Priority> {
        self.0.iter().map(|(priority, _)| *priority)
    }
}

fn mix(text: &str) -> Result<Mix, String> {
    let mut mix = Vec::new();
    for part in text.split(',') {
        let (name, weight) = part.split_once('=').unwrap_or((part, "1"));
        let priority = match name {
            "interactive" => Priority::Interactive,
            "normal" => Priority::Normal,
            "background" => Priority::Background,
            _ => return Err(format!("{name:?} is not interactive, normal or background")),
        };
        let weight = weight.parse().ok().filter(|weight| (1..=10_000).contains(weight));
        let weight = weight.ok_or_else(|| format!("the weight of {name} is not 1 to 10000"))?;
        if mix.iter().any(|(known, _)| *known == priority) {
            return Err(format!("{name} is there twice"));
        }
        mix.push((priority, weight));
    }
    mix.sort_by_key(|(priority, _)| *priority as i32);
    Ok(Mix(mix))
}

fn tokens(text: &str) -> Result<RangeInclusive<u32>, String> {
    range(text, 1, MOST_TOKENS)
}

fn pause(text: &str) -> Result<RangeInclusive<u32>, String> {
    range(text, 0, 3_600_000)
}

/// A number, or two with dots between, both of which may be drawn.
fn range(text: &str, low: u32, high: u32) -> Result<RangeInclusive<u32>, String> {
    let (first, second) = text.split_once("..").unwrap_or((text, text));
    let number = |text: &str| text.parse().ok().filter(|number| (low..=high).contains(number));
    match (number(first), number(second)) {
        (Some(first), Some(second)) if first <= second => Ok(first..=second),
        (Some(_), Some(_)) => Err("the first number is above the second".into()),
        _ => Err(format!("it is neither a number from {low} to {high} nor two as in 16..512")),
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.1..=86_400.0).contains(seconds));
    seconds.ok_or_else(|| "it is not a number of seconds from 0.1 to 86400".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_shared_by_weight() {
        use Priority::{Background, Interactive, Normal};
        let count = |text: &str, clients| {
            let shared = mix(text).unwrap().share(clients)?;
            let of = |wanted| shared.iter().filter(|priority| **priority == wanted).count();
            Some([Interactive, Normal, Background].map(of))
        };
        assert_eq!(count("normal", 3), Some([0, 3, 0]));
        assert_eq!(count("background=5,interactive=1,normal=2", 16), Some([2, 4, 10]));
        assert_eq!(count("interactive=1,background=8", 9), Some([1, 0, 8]));
        assert_eq!(count("interactive,normal,background", 4), Some([2, 1, 1]));
        assert_eq!(count("interactive,background", 1), None);
    }

    #[test]
    fn what_is_no_mix_is_told() {
        for (text, why) in [
            ("", "is not interactive"),
            ("urgent=1", "\"urgent\" is not interactive"),
            ("normal=0", "the weight of normal is not 1 to 10000"),
            ("normal=many", "the weight of normal"),
            ("normal,normal=2", "normal is there twice"),
        ] {
            assert!(mix(text).unwrap_err().contains(why), "{text}");
        }
    }

    #[test]
    fn a_range_is_a_number_or_two() {
        assert_eq!(tokens("7"), Ok(7..=7));
        assert_eq!(tokens("16..512"), Ok(16..=512));
        assert_eq!(pause("0"), Ok(0..=0));
        for wrong in ["", "0", "many", "1..", "..1", "1..2..3", "9..8", "-1", "1..2000000"] {
            assert!(tokens(wrong).is_err(), "{wrong}");
        }
        assert!(seconds("0.5").is_ok());
        for wrong in ["0", "NaN", "inf", "-1", "1e9", "soon"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
