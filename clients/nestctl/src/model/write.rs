//! Writing a model's file, with progress; what is there of it goes on Ctrl-C.

use std::path::Path;
use std::time::{Duration, Instant};

use nestd_elastic::error::Result as Written;
use nestd_elastic::synth::partial;
use nix::sys::statvfs::statvfs;
use serde_json::json;
use tokio::sync::watch;

use super::problem;
use crate::problem::Problem;
use crate::render::{self, Screen};

/// How often a person sees progress.
const TICK: Duration = Duration::from_millis(100);

/// Where to.
pub struct Out<'a> {
    pub file: &'a Path,
    /// Whether a file that is there is written over.
    pub force: bool,
    /// What it will take.
    pub bytes: u64,
    /// Whose problems the writer's are.
    pub about: &'a Path,
}

/// Has a writer, which is told where progress goes, write a file, and says how large it is.
pub fn write(
    out: &Out<'_>,
    screen: &mut Screen,
    writer: impl FnOnce(&mut dyn FnMut(u64, u64)) -> Written<()> + Send + 'static,
) -> Result<(), Problem> {
    let shown = out.file.display();
    if !out.force && out.file.symlink_metadata().is_ok() {
        let problem = format!("{shown} is there already: --force writes over it");
        return Err(Problem::Usage(problem));
    }
    check_room(out.file, out.bytes)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Problem::Io(format!("no runtime: {error}")))?;
    let start = Instant::now();
    let result = runtime.block_on(watched(out, screen, writer));
    screen.clear();
    // What still writes goes with the process.
    runtime.shutdown_background();
    result?;
    let bytes = out.file.metadata().map(|metadata| metadata.len()).unwrap_or_default();
    if screen.json {
        screen.value(&json!({ "file": shown.to_string(), "bytes": bytes }))?;
    } else {
        let seconds = start.elapsed().as_secs_f64();
        screen.line(&format!("{shown}: {} MiB in {seconds:.1} s", bytes >> 20))?;
    }
    Ok(())
}

async fn watched(
    out: &Out<'_>,
    screen: &mut Screen,
    writer: impl FnOnce(&mut dyn FnMut(u64, u64)) -> Written<()> + Send + 'static,
) -> Result<(), Problem> {
    let (tell, told) = watch::channel(0.0);
    let mut writing = tokio::task::spawn_blocking(move || {
        writer(&mut |done, all| {
            tell.send_replace(done as f64 / all as f64);
        })
    });
    let mut ticks = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            result = &mut writing => {
                return match result {
                    Ok(result) => result.map_err(|error| problem(out.about, &error)),
                    Err(error) => Err(Problem::Io(format!("the writer failed: {error}"))),
                };
            }
            _ = ticks.tick() => {
                let fraction = *told.borrow();
                screen.progress(&format!("writing {}", render::bar(fraction)));
            }
            _ = tokio::signal::ctrl_c() => {
                let _ = std::fs::remove_file(partial(out.file));
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
