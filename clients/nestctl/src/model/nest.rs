//! `nestctl model nest`: writes a copy of a model whose narrow sizes have pages of their own.

use nestd_elastic::nest;

use super::problem;
use super::write::{Out, write};
use crate::args::NestArgs;
use crate::problem::Problem;
use crate::render::Screen;

/// Writes the copy.
pub fn nest(args: &NestArgs, screen: &mut Screen) -> Result<(), Problem> {
    let wrong = |source| {
        problem(&args.file, &nestd_elastic::error::Error::Io { path: args.file.clone(), source })
    };
    let bytes = args.file.metadata().map_err(wrong)?.len();
    let out = Out { file: &args.out, force: args.force, bytes, about: &args.file };
    let (from, to) = (args.file.clone(), args.out.clone());
    write(&out, screen, move |progress| nest::write(&from, &to, progress))
}
