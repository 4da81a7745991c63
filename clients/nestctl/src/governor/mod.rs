//! `nestctl governor`: what the device can afford, and why. `live` talks to the daemon, `simulate` replays
//! a recorded day, `plot` draws it.

mod live;
mod plot;
mod simulate;

use std::fs::File;
use std::io::{self, Read};

use nestd_client::Client;
use nestd_elastic::gguf::Header;
use nestd_elastic::kv::Store;
use nestd_elastic::ladder::sizes_of;
use nestd_elastic::model::Model;
use nestd_elastic::need::need;
use nestd_policy::ladder::{Ladder, Rung};
use nestd_policy::settings::PROFILES;

use crate::args::{GovernorCommand, ProfileArgs, SimulateArgs};
use crate::model::problem;
use crate::problem::Problem;
use crate::render::Screen;

pub use live::{auto, pin, value};
pub use simulate::clock;

/// What needs no daemon: printing a profile, and simulating with a model's file. False for the rest.
pub fn local(command: Option<&GovernorCommand>, screen: &mut Screen) -> Result<bool, Problem> {
    match command {
        Some(GovernorCommand::Profile(args)) => profile(args, screen).map(|()| true),
        Some(GovernorCommand::Simulate(args)) if args.model.is_some() => {
            let ladder = ladder_of_file(args)?;
            simulate::simulate(args, &ladder, screen).map(|()| true)
        }
        _ => Ok(false),
    }
}

/// What the daemon is asked for.
pub async fn governor(
    client: &Client,
    command: Option<&GovernorCommand>,
    screen: &mut Screen,
) -> Result<(), Problem> {
    match command {
        None => live::show(client, screen).await,
        Some(GovernorCommand::Watch) => live::watch(client, screen).await,
        Some(GovernorCommand::Hold(args)) => live::hold(client, args, screen).await,
        Some(GovernorCommand::Record(args)) => live::record(client, args, screen).await,
        Some(GovernorCommand::Simulate(args)) => {
            let ladder = ladder_of_daemon(client, args).await?;
            simulate::simulate(args, &ladder, screen)
        }
        Some(GovernorCommand::Profile(args)) => profile(args, screen),
    }
}

fn profile(args: &ProfileArgs, screen: &mut Screen) -> Result<(), Problem> {
    let Some((_, text)) = PROFILES.iter().find(|(name, _)| *name == args.name) else {
        let names = PROFILES.map(|(name, _)| name).join(", ");
        return Err(Problem::Usage(format!(
            "there is no profile {:?}; there are {names}",
            args.name
        )));
    };
    Ok(screen.text(text)?)
}

fn ladder(sizes: impl IntoIterator<Item = (String, f64, u64)>, context_tokens: u32) -> Ladder {
    let sizes: Vec<_> = sizes.into_iter().collect();
    let full = sizes.first().map_or(1.0, |(_, params, _)| *params).max(f64::MIN_POSITIVE);
    let rungs = sizes.into_iter().map(|(name, params, need_mib)| Rung {
        name,
        need_mib,
        cost_percent: params / full * 100.0,
    });
    Ladder {
        rungs: rungs.collect(),
        held_mib: 0,
        limit_mib: None,
        context_tokens,
        parallel_requests: 1,
    }
}

fn ladder_of_file(args: &SimulateArgs) -> Result<Ladder, Problem> {
    let file = args.model.as_deref().unwrap_or_else(|| "".as_ref());
    let wrong = |error| problem(file, &error);
    let model = Model::open(file).map_err(wrong)?;
    let header = Header::read(model.map().bytes()).map_err(wrong)?;
    let context = usize::try_from(args.context).unwrap_or(usize::MAX).min(model.config().context);
    let mut sizes = Vec::new();
    for size in sizes_of(file, model.config()).map_err(wrong)? {
        let slice = model.slice(&size).map_err(wrong)?;
        let bytes = need(&header, model.config(), &slice, context, Store::F16).total();
        sizes.push((size.name, size.effective_params_b, bytes.div_ceil(1 << 20)));
    }
    Ok(ladder(sizes, args.context))
}

/// The sizes of the daemon's loaded model, or of its only one.
async fn ladder_of_daemon(client: &Client, args: &SimulateArgs) -> Result<Ladder, Problem> {
    let models = client.models().await?;
    let loaded = models.iter().find(|model| model.loaded);
    let model = loaded.or(if let [only] = &models[..] { Some(only) } else { None });
    let Some(model) = model.filter(|model| !model.sizes.is_empty()) else {
        let problem = "the daemon has no model loaded: name a file with --model (`nestctl model synth` \
                       writes one of a real model's size)";
        return Err(Problem::Usage(problem.into()));
    };
    let sizes = model.sizes.iter();
    let sizes = sizes.map(|size| (size.name.clone(), size.effective_params_b, size.memory_mib));
    Ok(ladder(sizes, args.context))
}

/// A file, or standard input.
fn open(path: &std::path::Path) -> Result<Box<dyn Read>, Problem> {
    if path.as_os_str() == "-" {
        return Ok(Box::new(io::stdin()));
    }
    let open = File::open(path);
    let file = open.map_err(|error| Problem::Usage(format!("{}: {error}", path.display())))?;
    Ok(Box::new(file))
}
