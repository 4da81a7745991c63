//! How much one user may have of what all share.

/// The quotas of each user; 0 is no quota.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quotas {
    /// Requests that run at once; more wait.
    pub parallel_requests: u32,
    /// Requests that wait.
    pub queued_requests: u32,
    /// Tokens that were computed: of prompts, without what a cache knew, and of answers.
    pub tokens_per_minute: u64,
    /// Joules, while the device runs on a battery.
    pub energy_j_per_hour: u64,
}
