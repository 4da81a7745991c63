//! `nestctl bench --model`: how fast a model runs in this process, and how much of the memory's bandwidth
//! that uses. What is measured is what the daemon does for one conversation, without the daemon.
//! `daemon` is `nestctl bench` without a model.

mod bandwidth;
pub mod daemon;
mod figures;
mod measure;
mod random;
mod report;

use std::ops::RangeInclusive;
use std::path::Path;
use std::time::{Duration, Instant};

use nestd_elastic::error::Error;
use nestd_elastic::gguf::Header;
use nestd_elastic::kernels::Kernels;
use nestd_elastic::kv::{Shape, Store};
use nestd_elastic::ladder::sizes_of;
use nestd_elastic::model::Model;
use nestd_elastic::need::read_per_token;
use nestd_elastic::pool::{Pool, Settings};
use nestd_elastic::residency::Resident;
use nestd_elastic::sidefile::SideFile;
use nestd_elastic::sizes::{Size, Slice};

use crate::args::{BenchArgs, EngineArgs};
use crate::machine;
use crate::model::problem;
use crate::problem::Problem;
use crate::render::Screen;
use measure::{Bench, Run};

/// A size that is measured.
pub struct Rung {
    pub name: String,
    pub slice: Slice,
    /// Bytes of weights that a token reads.
    pub read: u64,
}

/// What was measured.
pub struct Measured {
    pub kernels: &'static str,
    pub threads: usize,
    /// The size, and the other one where they alternate.
    pub rungs: Vec<Rung>,
    pub load: Duration,
    pub runs: Vec<Run>,
    pub resident: Resident,
    pub kv: u64,
    /// Taken before the bandwidth is measured.
    pub peak: Option<u64>,
    /// Bytes a second.
    pub bandwidth: f64,
}

/// What to measure.
struct Task<'a> {
    model: &'a Path,
    prompt_tokens: u32,
    max_tokens: u32,
    options: &'a EngineArgs,
}

/// Measures the model and shows the figures, if one is named. False without.
pub fn local(args: &BenchArgs, screen: &mut Screen) -> Result<bool, Problem> {
    let Some(model) = &args.model else { return Ok(false) };
    let one = |range: &RangeInclusive<u32>, option| match (range.start(), range.end()) {
        (first, last) if first == last => Ok(*first),
        _ => Err(Problem::Usage(format!("with --model, {option} is one number"))),
    };
    let task = Task {
        model,
        prompt_tokens: one(&args.prompt_tokens, "--prompt-tokens")?,
        max_tokens: one(&args.max_tokens, "--max-tokens")?,
        options: &args.engine,
    };
    let measured = measure(&task, screen)?;
    screen.clear();
    if screen.json {
        screen.value(&report::json(&task, &measured))?;
    } else {
        screen.text(&report::text(&task, &measured))?;
    }
    Ok(true)
}

fn measure(task: &Task<'_>, screen: &mut Screen) -> Result<Measured, Problem> {
    let wrong = |error: Error| problem(task.model, &error);
    let start = Instant::now();
    let mut model = Model::open(task.model).map_err(wrong)?;
    let load = start.elapsed();
    if let Some(file) = &task.options.side_file {
        match SideFile::open_or_write(file, &model).map_err(wrong)? {
            Some(side) => model = model.with_side(side),
            None => return Err(Problem::Usage("this model has no use for a side file".into())),
        }
    }
    let ladder = chosen(task, &model)?;
    let settings = Settings { threads: count(task.options.threads), ..Settings::default() };
    let pool = || {
        Pool::new(&settings).map_err(|error| Problem::Io(format!("no computing threads: {error}")))
    };
    let context = count(task.prompt_tokens).saturating_add(count(task.max_tokens));
    let store = task.options.kv.into();
    if store == Store::Q8_0 && !model.config().head_dim.is_multiple_of(32) {
        let problem = "--kv q8_0 takes a model whose heads are a multiple of 32 wide";
        return Err(Problem::Usage(problem.into()));
    }
    let shape = Shape::new(model.config(), context, store);
    let threads;
    let mut runs = Vec::new();
    {
        let mut bench = Bench::new(&model, &ladder, pool()?, shape.clone());
        threads = bench.threads();
        for run in 1..=task.options.repeat {
            let told = |tokens: usize, screen: &mut Screen| {
                screen.progress(&format!("run {run} of {}: {tokens} tokens", task.options.repeat));
            };
            runs.push(bench.run(task, screen, told).map_err(wrong)?);
        }
    }
    let resident = model
        .resident()
        .map_err(|error| Problem::Io(format!("the pages cannot be counted: {error}")))?;
    let peak = machine::peak_memory();
    screen.progress("measuring the memory's bandwidth");
    let header = Header::read(model.map().bytes()).map_err(wrong)?;
    let bandwidth = bandwidth::measure(model.map().bytes(), &header, &mut pool()?);
    let kernels = Kernels::best().name();
    let kv = shape.bytes();
    Ok(Measured { kernels, threads, rungs: ladder, load, runs, resident, kv, peak, bandwidth })
}

/// The size to measure, and the other one where they alternate.
fn chosen(task: &Task<'_>, model: &Model) -> Result<Vec<Rung>, Problem> {
    let wrong = |error: Error| problem(task.model, &error);
    let sizes = sizes_of(task.model, model.config()).map_err(wrong)?;
    let named = |name: &str| {
        sizes.iter().find(|size| size.name == name).ok_or_else(|| {
            let names: Vec<_> = sizes.iter().map(|size| size.name.as_str()).collect();
            Problem::Usage(format!("there is no size {name:?}, but {}", names.join(", ")))
        })
    };
    let none = || Problem::Usage("the model has no sizes".into());
    let first = match &task.options.size {
        Some(name) => named(name)?,
        None => sizes.first().ok_or_else(none)?,
    };
    let mut wanted = vec![first];
    if task.options.switch_every.is_some() {
        let other = match &task.options.switch_to {
            Some(name) => named(name)?,
            None => sizes.last().ok_or_else(none)?,
        };
        if other.name == first.name {
            let text = "there is only one size to alternate: name another with --switch-to";
            return Err(Problem::Usage(text.into()));
        }
        wanted.push(other);
    }
    let header = Header::read(model.map().bytes()).map_err(wrong)?;
    let rung = |size: &Size| {
        let slice = model.slice(size).map_err(wrong)?;
        let read = read_per_token(&header, model.config(), &slice);
        Ok(Rung { name: size.name.clone(), slice, read })
    };
    wanted.into_iter().map(rung).collect()
}

fn count(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
