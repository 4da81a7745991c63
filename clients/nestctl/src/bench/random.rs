//! Numbers that look random and are the same each time: the generator `SplitMix64`.

use std::ops::RangeInclusive;

/// Where the sequence is.
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

    /// A number of a range, each as likely.
    pub fn within(&mut self, range: &RangeInclusive<u32>) -> u32 {
        let count = u64::from(range.end().saturating_sub(*range.start())) + 1;
        let above = u32::try_from(self.next() % count).unwrap_or(0);
        range.start().saturating_add(above)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_drawn_whole() {
        let mut random = Random::new(7);
        let drawn: Vec<u32> = (0..200).map(|_| random.within(&(3..=5))).collect();
        assert!((3..=5).all(|number| drawn.contains(&number)), "{drawn:?}");
        assert!(drawn.iter().all(|number| (3..=5).contains(number)), "{drawn:?}");
        assert_eq!(random.within(&(9..=9)), 9);
        let same = |seed| [Random::new(seed).next(), Random::new(seed).next()];
        assert!(same(1)[0] == same(1)[1] && same(1) != same(2));
    }
}
