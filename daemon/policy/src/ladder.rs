//! The sizes of the loaded model, and what each needs.

/// One size.
#[derive(Clone, Debug, PartialEq)]
pub struct Rung {
    /// As in the model's sizes table.
    pub name: String,
    /// Memory for weights, caches and work space, from the model's headers, in MiB.
    pub need_mib: u64,
    /// What a token costs, relative to the largest size, in percent: the share of its parameters.
    pub cost_percent: f64,
}

/// All sizes of a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ladder {
    /// Largest first; at least one, or there is nothing to decide.
    pub rungs: Vec<Rung>,
    /// What the model that is loaded now would give back if it went, and that does not count as
    /// available meanwhile; MiB. Mapped weights count as available already.
    pub held_mib: u64,
    /// At most this much for a model, as configured; None: what there is.
    pub limit_mib: Option<u64>,
    /// The longest context that a request may have.
    pub context_tokens: u32,
    /// Requests that run at once.
    pub parallel_requests: u32,
}

impl Ladder {
    /// The place of a size.
    #[must_use]
    pub fn index(&self, name: &str) -> Option<usize> {
        self.rungs.iter().position(|rung| rung.name == name)
    }

    /// The name of the size at a place; of the smallest, past the end.
    #[must_use]
    pub fn name(&self, index: usize) -> &str {
        self.rungs.get(index).or(self.rungs.last()).map_or("", |rung| &rung.name)
    }

    /// The place of the smallest size.
    #[must_use]
    pub fn smallest(&self) -> usize {
        self.rungs.len().saturating_sub(1)
    }

    /// The largest size that costs at most this much; the smallest, if none does.
    #[must_use]
    pub fn within_cost(&self, percent: f64) -> usize {
        // Shares are quotients: what should be equal may differ in the last bit.
        let fits = self.rungs.iter().position(|rung| rung.cost_percent <= percent + 1e-6);
        fits.unwrap_or(self.smallest())
    }

    /// The largest size that leaves `reserve` MiB of `available`, if that is known, and is within the
    /// configured limit; the smallest, if none is.
    #[must_use]
    pub fn within_memory(&self, available_mib: Option<u64>, reserve_mib: f64) -> usize {
        let there = |available: u64| available.saturating_add(self.held_mib) as f64 - reserve_mib;
        let budget = available_mib.map_or(f64::INFINITY, there);
        let limit = self.limit_mib.unwrap_or(u64::MAX);
        let fits = |rung: &Rung| rung.need_mib as f64 <= budget && rung.need_mib <= limit;
        self.rungs.iter().position(fits).unwrap_or(self.smallest())
    }
}
