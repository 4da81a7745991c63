//! Weights that are read ahead, and memory that is given back, on threads beside the engine's: a disk that
//! has enough to do keeps whoever asks it for more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nestd_elastic::model::Model;
use nestd_elastic::pool::stand_back;
use nestd_elastic::sizes::Slice;

/// How long a size is in use before the memory of what it does not read is given back: bringing it in
/// again costs more than keeping it for a moment.
const SETTLED: Duration = Duration::from_secs(2);

/// What of a model's file shall be in memory.
pub struct Pages {
    model: Arc<Model>,
    /// A size that may come soon.
    coming: Option<Slice>,
    /// When something else was asked for, until the memory of what is not read any more was given back.
    changed: Option<Instant>,
    /// Counts what was asked for. Who reads ahead or gives back stops when something else is.
    asked: Arc<AtomicU64>,
}

impl Pages {
    /// Those of a model that was just loaded at this size.
    pub fn new(model: &Arc<Model>, slice: &Slice) -> Self {
        let asked = Arc::default();
        let pages = Self { model: Arc::clone(model), coming: None, changed: None, asked };
        pages.bring(slice);
        pages
    }

    /// Reads what a size needs that may come soon. The one that might have come before no longer does; it
    /// was read in vain, and is given back.
    pub fn prepare(&mut self, slice: &Slice) {
        self.coming = Some(slice.clone());
        self.changed = Some(Instant::now());
        self.bring(slice);
    }

    /// Reads what a size needs that comes now; later, gives back what it does not read.
    pub fn switch(&mut self, slice: &Slice) {
        self.coming = None;
        self.changed = Some(Instant::now());
        self.bring(slice);
    }

    /// Gives memory back that neither the size in use nor the one that may come soon reads, once the
    /// former has been in use, and the latter planned, for a while. Tells when that is due.
    pub fn tidy(&mut self, slice: &Slice) -> Option<Duration> {
        let left = SETTLED.saturating_sub(self.changed?.elapsed());
        if left > Duration::ZERO {
            return Some(left);
        }
        self.changed = None;
        let (slice, coming) = (slice.clone(), self.coming.clone());
        let (asked, turn) = (Arc::clone(&self.asked), self.asked.load(Ordering::Relaxed));
        let tidy = move |model: &Model| {
            let slices: Vec<&Slice> = std::iter::once(&slice).chain(&coming).collect();
            // A size that is asked for meanwhile may read just this, and what is left is looked at again when
            // it has settled. The matrix that is being given back is lost for it: it is read when it is used.
            model.give_back(&slices, &|| asked.load(Ordering::Relaxed) == turn);
        };
        self.spawn("nestd-tidy", tidy);
        None
    }

    /// Reads what this size needs and is not in memory, until something else is asked for.
    fn bring(&self, slice: &Slice) {
        let turn = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        let (asked, slice) = (Arc::clone(&self.asked), slice.clone());
        self.spawn("nestd-ahead", move |model| {
            // It goes through hundreds of thousands of pages, which takes tens of milliseconds of a core,
            // while a token is computed. Memory that is given back cannot wait like that.
            stand_back();
            let go_on = || asked.load(Ordering::Relaxed) == turn;
            model.map().read_ahead(&model.needed(&slice), &go_on);
        });
    }

    fn spawn(&self, name: &str, work: impl FnOnce(&Model) + Send + 'static) {
        let model = Arc::clone(&self.model);
        let thread = std::thread::Builder::new().name(name.into());
        if let Err(error) = thread.spawn(move || work(&model)) {
            tracing::warn!(%error, thread = name, "memory is not looked after");
        }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.asked.fetch_add(1, Ordering::Relaxed);
    }
}
