//! `nestctl model synth`: writes a model of random weights.

use nestd_elastic::synth::{self, Quant, Shape};

use super::write::{Out, write};
use crate::args::{SynthArgs, SynthQuant, SynthSize};
use crate::problem::Problem;
use crate::render::Screen;

/// The header: almost all of it is the vocabulary.
const HEADER_BYTES: u64 = 16 << 20;

/// Writes the file.
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
    let bytes = shape.bytes(quant) + HEADER_BYTES;
    let out = Out { file: &args.out, force: args.force, bytes, about: &args.out };
    let (to, seed) = (args.out.clone(), args.seed);
    write(&out, screen, move |progress| synth::write(&to, &shape, quant, seed, progress))
}
