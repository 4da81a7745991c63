//! `nestctl bench`: how fast a model runs in this process, and how much of the memory's bandwidth that
//! uses. What is measured is what the daemon does for one conversation, without the daemon.

mod bandwidth;
mod figures;
mod measure;
mod report;

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
use nestd_elastic::sizes::{Size, Slice};

use crate::args::BenchArgs;
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

/// Measures, and shows the figures.
pub fn bench(args: &BenchArgs, screen: &mut Screen) -> Result<(), Problem> {
    let measured = measure(args, screen)?;
    screen.clear();
    if screen.json {
        screen.value(&report::json(args, &measured))?;
    } else {
        screen.text(&report::text(args, &measured))?;
    }
    Ok(())
}

fn measure(args: &BenchArgs, screen: &mut Screen) -> Result<Measured, Problem> {
    let wrong = |error: Error| problem(&args.model, &error);
    let start = Instant::now();
    let model = Model::open(&args.model).map_err(wrong)?;
    let load = start.elapsed();
    let ladder = chosen(args, &model)?;
    let settings = Settings { threads: count(args.threads), ..Settings::default() };
    let pool = || {
        Pool::new(&settings).map_err(|error| Problem::Io(format!("no computing threads: {error}")))
    };
    let context = count(args.prompt_tokens).saturating_add(count(args.max_tokens));
    let store = args.kv.into();
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
        for run in 1..=args.repeat {
            let told = |tokens: usize, screen: &mut Screen| {
                screen.progress(&format!("run {run} of {}: {tokens} tokens", args.repeat));
            };
            runs.push(bench.run(args, screen, told).map_err(wrong)?);
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
fn chosen(args: &BenchArgs, model: &Model) -> Result<Vec<Rung>, Problem> {
    let wrong = |error: Error| problem(&args.model, &error);
    let sizes = sizes_of(&args.model, model.config()).map_err(wrong)?;
    let named = |name: &str| {
        sizes.iter().find(|size| size.name == name).ok_or_else(|| {
            let names: Vec<_> = sizes.iter().map(|size| size.name.as_str()).collect();
            Problem::Usage(format!("there is no size {name:?}, but {}", names.join(", ")))
        })
    };
    let none = || Problem::Usage("the model has no sizes".into());
    let first = match &args.size {
        Some(name) => named(name)?,
        None => sizes.first().ok_or_else(none)?,
    };
    let mut wanted = vec![first];
    if args.switch_every.is_some() {
        let other = match &args.switch_to {
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
