//! The bytes of a band of rows, as registers that hold the same columns of every row.

#![allow(unsafe_code, reason = "raw rows, lengths checked where products begin")]
#![allow(clippy::inline_always, reason = "must take on the caller's target features")]
#![allow(clippy::indexing_slicing, reason = "an array of four registers")]

use std::sync::atomic::{Ordering, compiler_fence};

use crate::kernels::bands::Band;
use crate::kernels::lanes::Lanes;

/// The rows of a band, as many as there are lanes.
pub(super) struct Source<B: Band> {
    rows: B,
    /// Rows, and what is asked for of them while this stretch is read: their bytes from here on.
    ahead: Option<(B, usize)>,
    gathered: usize,
}

impl<B: Band> Source<B> {
    #[inline(always)]
    pub(super) fn new(rows: B, ahead: Option<(B, usize)>) -> Self {
        Self { rows, ahead, gathered: 0 }
    }

    /// 16 bytes of each row, as [`Lanes::gather`].
    ///
    /// # Safety
    /// As for `product`; the rows have those bytes.
    #[inline(always)]
    pub(super) unsafe fn gather<L: Lanes>(&mut self, offset: usize) -> [L::I; 4] {
        // SAFETY: the caller's; nothing is read through a pointer that only a prefetch takes.
        unsafe {
            if let Some((rows, ahead)) = self.ahead.filter(|_| B::asks(self.gathered)) {
                rows.ask::<L>(ahead + 16 * self.gathered);
                // The CPU has room for few requests at a time, and the compiler would have all of a
                // stretch follow each other.
                compiler_fence(Ordering::SeqCst);
            }
            self.gathered += 1;
            self.rows.gather::<L>(offset)
        }
    }

    /// 2 bytes of each row, as [`Lanes::gather_u16`].
    ///
    /// # Safety
    /// As for `product`; the rows have those bytes.
    #[inline(always)]
    pub(super) unsafe fn gather_u16<L: Lanes>(&self, offset: usize) -> L::I {
        // SAFETY: the caller's.
        unsafe { self.rows.gather_u16::<L>(offset) }
    }
}

/// Reads a stretch of every row by words of four bytes, which stay in registers.
pub(super) struct Words<'s, L: Lanes, B: Band> {
    rows: &'s mut Source<B>,
    offset: usize,
    four: [L::I; 4],
    taken: usize,
}

impl<'s, L: Lanes, B: Band> Words<'s, L, B> {
    /// # Safety
    /// As for `product`; the rows have the bytes that are taken, and those up to the next 16.
    #[inline(always)]
    pub(super) unsafe fn new(rows: &'s mut Source<B>, offset: usize) -> Self {
        // SAFETY: the caller's.
        Self { rows, offset, four: [unsafe { L::splat_i(0) }; 4], taken: 0 }
    }

    /// # Safety
    /// As above.
    #[inline(always)]
    pub(super) unsafe fn next(&mut self) -> L::I {
        if self.taken.is_multiple_of(4) {
            // SAFETY: the caller's.
            self.four = unsafe { self.rows.gather::<L>(self.offset + 4 * self.taken) };
        }
        self.taken += 1;
        self.four[(self.taken - 1) % 4]
    }

    /// # Safety
    /// As above.
    #[inline(always)]
    pub(super) unsafe fn four(&mut self) -> [L::I; 4] {
        // SAFETY: the caller's.
        unsafe { [self.next(), self.next(), self.next(), self.next()] }
    }

    /// Four words that begin in the middle of `last`, which becomes the one they end in.
    ///
    /// # Safety
    /// As above.
    #[inline(always)]
    pub(super) unsafe fn four_from_middle(&mut self, last: &mut L::I) -> [L::I; 4] {
        // SAFETY: the caller's.
        unsafe {
            let [a, b, c, d] = self.four();
            let join = |first, second| L::or(L::shr(first, 16), L::shl(second, 16));
            let joined = [join(*last, a), join(a, b), join(b, c), join(c, d)];
            *last = d;
            joined
        }
    }
}

/// Code for each of some numbers, so that arrays that they index stay in registers.
macro_rules! unrolled {
    (for $i:ident in [$($number:literal)*] $body:block) => {
        $({
            let $i: usize = $number;
            $body
        })*
    };
}

pub(super) use unrolled;
