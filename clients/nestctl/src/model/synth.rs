//! `nestctl model synth`: writes a model of random weights.

use std::path::Path;
use std::time::{Duration, Instant};

use nestd_elastic::synth::{self, Quant, Shape};
use nix::sys::statvfs::statvfs;
use serde_json::json;
use tokio::sync::watch;

use super::problem;
use crate::args::{SynthArgs, SynthQuant, SynthSize};
use crate::problem::Problem;
use crate::render::{self, Screen};

/// The header: almost all of it is the vocabulary.
const HEADER_BYTES: u64 = 16 << 20;
/// How often a person sees progress.
const TICK: Duration = Duration::from_millis(100);

/// Writes the file. On Ctrl-C what is there of it goes.
pub fn synth(args: &SynthArgs, screen: &mut Screen) -> Result<(), Problem> {
    let shape = match args.size {
        SynthSize::E2B => Shape::E2B,
        SynthSize::E4B => Shape::E4B,
        SynthSize::Small => Shape::SMALL,
    };
    let quant = match args.quant {
        SynthQuant::Q4_0 => Quant::Q4_0,
        SynthQuant::Q4_K => Quant::Q4_K,
        SynthQuant::Q8_0 => Quant::Q8_0,
        SynthQuant::F16 => Quant::F16,
    };
    if !args.force && args.out.symlink_metadata().is_ok() {
        return Err(Problem::Usage(format!(
            "{} is there already: --force writes over it",
            args.out.display()
        )));
    }
    check_room(&args.out, shape.bytes(quant) + HEADER_BYTES)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Problem::Io(format!("no runtime: {error}")))?;
    let start = Instant::now();
    let result = runtime.block_on(write(args, shape, quant, screen));
    screen.clear();
    // What still writes goes with the process.
    runtime.shutdown_background();
    result?;
    let bytes = args.out.metadata().map(|metadata| metadata.len()).unwrap_or_default();
    if screen.json {
        let file = args.out.display().to_string();
        screen.value(&json!({ "file": file, "bytes": bytes }))?;
    } else {
        let seconds = start.elapsed().as_secs_f64();
        let (file, mib) = (args.out.display(), bytes >> 20);
        screen.line(&format!("{file}: {mib} MiB in {seconds:.1} s"))?;
    }
    Ok(())
}

async fn write(
    args: &SynthArgs,
    shape: Shape,
    quant: Quant,
    screen: &mut Screen,
) -> Result<(), Problem> {
    let (tell, told) = watch::channel(0.0);
    let (out, seed) = (args.out.clone(), args.seed);
    let mut writing = tokio::task::spawn_blocking(move || {
        synth::write(&out, &shape, quant, seed, &mut |done, all| {
            tell.send_replace(done as f64 / all as f64);
        })
    });
    let mut ticks = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            result = &mut writing => {
                return match result {
                    Ok(result) => result.map_err(|error| problem(&args.out, &error)),
                    Err(error) => Err(Problem::Io(format!("the writer failed: {error}"))),
                };
            }
            _ = ticks.tick() => {
                let fraction = *told.borrow();
                screen.progress(&format!("writing {}", render::bar(fraction)));
            }
            _ = tokio::signal::ctrl_c() => {
                let _ = std::fs::remove_file(synth::partial(&args.out));
                return Err(Problem::Interrupted);
            }
        }
    }
}

/// Fails unless the folder has room for so many bytes.
fn check_room(file: &Path, needed: u64) -> Result<(), Problem> {
    let folder = match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let room = statvfs(folder).map_err(|error| {
        Problem::Usage(format!("{} cannot be written to: {error}", folder.display()))
    })?;
    #[allow(clippy::useless_conversion, reason = "32 bits on some systems")]
    let free = u64::from(room.blocks_available()) * u64::from(room.fragment_size());
    if free >= needed {
        return Ok(());
    }
    Err(Problem::Io(format!(
        "{} has {} MiB free, and the file needs {} MiB",
        folder.display(),
        free >> 20,
        needed >> 20
    )))
}
