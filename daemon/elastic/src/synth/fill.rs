//! Random weights, made as the blocks that a file has: random bytes are the quants, and only the scales
//! are put in. So gigabytes are made as fast as they can be written.

use half::f16;

use crate::tensor::Kind;

/// Standard deviation of whole numbers that are drawn evenly out of so many.
fn even(count: f32) -> f32 {
    ((count * count - 1.0) / 12.0).sqrt()
}

/// The generator `SplitMix64`.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below this.
    pub fn below(&mut self, count: usize) -> usize {
        let wide = u128::from(self.next()) * (count as u128);
        usize::try_from(wide >> 64).unwrap_or(0)
    }

    pub fn bytes(&mut self, out: &mut [u8]) {
        let (words, rest) = out.as_chunks_mut();
        for word in words {
            *word = self.next().to_le_bytes();
        }
        let last = self.next().to_le_bytes();
        for (to, from) in rest.iter_mut().zip(last) {
            *to = from;
        }
    }
}

/// What the values of a tensor are like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fill {
    /// Around 0 with this standard deviation.
    Spread(f32),
    /// Within a tenth of this.
    About(f32),
    /// Around 1, or around -1.
    Signs,
}

impl Fill {
    /// For tensors of this kind.
    pub fn filler(self, kind: Kind) -> Filler {
        let spread = match self {
            Self::Spread(spread) => spread,
            _ => 0.0,
        };
        // Scales differ by up to a quarter; 1.01 is the root of the mean of their squares.
        let scales = move |unit: f32| {
            (0..128).map(move |step| {
                f16::from_f32(spread / (1.01 * unit) * (0.75 + step as f32 / 256.0))
            })
        };
        let half_floats = || {
            // Evenly drawn numbers reach the root of 3 times their standard deviation.
            (0..4096).map(|step| {
                f16::from_f32((step as f32 - 2047.5) / 2048.0 * 3.0_f32.sqrt() * spread)
            })
        };
        let table = match kind {
            Kind::F16 => half_floats().collect(),
            Kind::Q4_0 => scales(even(16.0)).collect(),
            Kind::Q8_0 => scales(even(256.0)).collect(),
            // The mean sizes of the sub-scales are those that `q4_k` and `q6_k` draw.
            Kind::Q4_K => scales(even(16.0) * 48.4).collect(),
            Kind::Q6_K => scales(even(64.0) * 97.3).collect(),
            _ => Vec::new(),
        };
        Filler { fill: self, kind, table }
    }
}

/// Makes weights of random bytes.
pub struct Filler {
    fill: Fill,
    kind: Kind,
    /// Half floats to draw from.
    table: Vec<f16>,
}

impl Filler {
    /// Turns random bytes into whole blocks.
    pub fn shape(&mut self, bytes: &mut [u8]) {
        let table = &self.table;
        let draw = |from: u16| table.get(usize::from(from) % table.len().max(1)).copied();
        let draw = |from: u16| draw(from).unwrap_or(f16::ZERO);
        match self.kind {
            Kind::F16 => {
                for word in bytes.as_chunks_mut().0 {
                    *word = draw(u16::from_le_bytes(*word)).to_le_bytes();
                }
            }
            Kind::Q4_0 => blocks::<18>(bytes, |block| {
                scale(block, 0, draw);
            }),
            Kind::Q8_0 => blocks::<34>(bytes, |block| {
                scale(block, 0, draw);
                // -128 is not used: the range is even around 0.
                for quant in block.iter_mut().skip(2).filter(|quant| **quant == 0x80) {
                    *quant = 0x81;
                }
            }),
            Kind::Q4_K => blocks::<144>(bytes, |block| q4_k(block, draw)),
            Kind::Q6_K => blocks::<210>(bytes, |block| q6_k(block, draw)),
            // Of the others only floats are written.
            _ => {
                for word in bytes.as_chunks_mut().0 {
                    *word = self.float(u32::from_le_bytes(*word)).to_le_bytes();
                }
            }
        }
    }

    fn float(&self, random: u32) -> f32 {
        let (sign, part) = (random & 1 == 0, (random >> 8) as f32 / (1 << 24) as f32);
        match self.fill {
            Fill::Spread(spread) => (part * 2.0 - 1.0) * 3.0_f32.sqrt() * spread,
            Fill::About(value) => value * (0.9 + part * 0.2),
            Fill::Signs if sign => 0.9 + part * 0.2,
            Fill::Signs => -0.9 - part * 0.2,
        }
    }
}

fn blocks<const N: usize>(bytes: &mut [u8], shape: impl FnMut(&mut [u8; N])) {
    bytes.as_chunks_mut().0.iter_mut().for_each(shape);
}

/// Makes a scale of two random bytes. Its sign is random too, so that quants which are not even
/// around 0 are so over a row.
fn scale<const N: usize>(block: &mut [u8; N], at: usize, draw: impl Fn(u16) -> f16) {
    if let Some(bytes) = block.get_mut(at..).and_then(|bytes| bytes.first_chunk_mut()) {
        let random = u16::from_le_bytes(*bytes);
        let sign = random & 0x8000;
        *bytes = (draw(random).to_bits() | sign).to_le_bytes();
    }
}

/// Two half floats, twelve bytes of scales and minima, the quants.
fn q4_k(block: &mut [u8; 144], draw: impl Fn(u16) -> f16) {
    let Some((head, rest)) = block.split_first_chunk_mut::<4>() else { return };
    let [low, high, ..] = *head;
    let scale = draw(u16::from_le_bytes([low, high]));
    // The mean quant is 7.5; each minimum takes it off, as its six bits are those of its scale.
    let [s0, s1] = scale.to_le_bytes();
    let [m0, m1] = f16::from_f32(scale.to_f32() * 7.5).to_le_bytes();
    *head = [s0, s1, m0, m1];
    let Some(packed) = rest.first_chunk_mut::<12>() else { return };
    let six = packed.map(|random| 32 | (random & 31));
    let of = |j: usize| six.get(j).copied().unwrap_or(0);
    // Four scales, four minima, the lower bits of the other four pairs; their upper bits are in front.
    for (at, byte) in packed.iter_mut().enumerate() {
        *byte =
            if at < 8 { of(at % 4) | ((of(at % 4 + 4) >> 4) << 6) } else { (of(at - 4) & 15) * 17 };
    }
}

/// The quants, sixteen scales of a byte each, a half float.
fn q6_k(block: &mut [u8; 210], draw: impl Fn(u16) -> f16) {
    for byte in block.iter_mut().skip(192).take(16) {
        let size = 64 | (*byte & 63);
        // The upper bit is the sign.
        *byte = if *byte & 0x80 == 0 { size } else { size.wrapping_neg() };
    }
    scale(block, 208, draw);
}
