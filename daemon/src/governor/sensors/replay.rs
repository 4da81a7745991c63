//! A recorded day instead of the device: a trace, played at its own speed or faster.
//!
//! It replaces all other sensors. After its last line, that line holds; a broken line is logged and
//! ends it, and then nothing holds.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::future::BoxFuture;
use nestd_policy::trace::{self, Point};
use tokio::time::{Instant, sleep_until};

use super::Reading;

/// Why a trace cannot be played.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file.
    #[error("cannot read the trace: {0}")]
    File(#[from] std::io::Error),
    /// Its header.
    #[error("{0}")]
    Trace(#[from] trace::Error),
    /// The speed.
    #[error("a trace cannot be played at a speed of {0}")]
    Speed(f64),
}

type Points = Box<dyn Iterator<Item = Result<Point, trace::Error>> + Send>;

/// The sensor.
pub struct Sensor {
    path: PathBuf,
    points: Points,
    speed: f64,
    /// When the first reading was asked for.
    began: Option<Instant>,
    /// Read, but not due yet.
    waiting: Option<Point>,
}

impl Sensor {
    /// Plays the file, `speed` times as fast as it was recorded.
    pub fn open(path: &Path, speed: f64) -> Result<Self, Error> {
        if !(speed.is_finite() && speed > 0.0) {
            return Err(Error::Speed(speed));
        }
        let points: Points = Box::new(trace::read(File::open(path)?)?);
        Ok(Self { path: path.to_owned(), points, speed, began: None, waiting: None })
    }

    /// The time at which the point is due; None: not in this life.
    fn due(&self, began: Instant, point: &Point) -> Option<Instant> {
        let after = Duration::try_from_secs_f64(point.at.as_secs_f64() / self.speed).ok()?;
        began.checked_add(after)
    }
}

impl super::Sensor for Sensor {
    fn name(&self) -> &'static str {
        "replay"
    }

    fn next(&mut self) -> BoxFuture<'_, Option<Reading>> {
        Box::pin(async move {
            let began = *self.began.get_or_insert_with(Instant::now);
            if self.waiting.is_none() {
                match self.points.next() {
                    Some(Ok(point)) => self.waiting = Some(point),
                    Some(Err(error)) => {
                        let trace = self.path.display();
                        tracing::error!(%error, %trace, "the trace ends here");
                        self.points = Box::new(std::iter::empty());
                        return None;
                    }
                    None => {}
                }
            }
            let due = self.waiting.as_ref().and_then(|point| self.due(began, point));
            match due {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
            self.waiting.take().map(|point| Reading::All(point.snapshot))
        })
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use nestd_policy::snapshot::Snapshot;

    use super::super::Sensor as _;
    use super::*;

    fn trace(lines: &str, speed: f64) -> Result<Sensor, Error> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace.csv");
        std::fs::write(&path, format!("{}\n{lines}", trace::COLUMNS.join(","))).unwrap();
        Sensor::open(&path, speed)
    }

    fn on_ac(on_ac: bool) -> Reading {
        Reading::All(Snapshot { on_ac: Some(on_ac), ..Snapshot::default() })
    }

    #[tokio::test(start_paused = true)]
    async fn points_come_at_their_time() {
        let mut sensor = trace("0,,true,,,,,,\n3600,,false,,,,,,\n", 2.0).unwrap();
        let began = Instant::now();
        assert_eq!(sensor.next().await, Some(on_ac(true)));
        let next = sensor.next().now_or_never();
        assert_eq!(next, None);
        assert_eq!(sensor.next().await, Some(on_ac(false)));
        assert_eq!(began.elapsed().as_secs(), 1800);
        assert_eq!(sensor.next().now_or_never(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_broken_line_ends_it() {
        let mut sensor = trace("0,,true,,,,,,\n1,,maybe,,,,,,\n2,,false,,,,,,\n", 1.0).unwrap();
        assert_eq!(sensor.next().await, Some(on_ac(true)));
        assert_eq!(sensor.next().await, None);
    }

    #[test]
    fn what_cannot_be_played_is_refused() {
        assert!(matches!(trace("", f64::NAN), Err(Error::Speed(_))));
        assert!(matches!(trace("", 0.0), Err(Error::Speed(_))));
        assert!(matches!(Sensor::open(Path::new("/nowhere/trace"), 1.0), Err(Error::File(_))));
        assert!(matches!(Sensor::open(Path::new("/dev/null"), 1.0), Err(Error::Trace(_))));
    }
}
