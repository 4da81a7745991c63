//! What the device says: each sensor behind one trait, each optional, each with its root or bus given.
//!
//! [`live`] makes the sensors of the settings, and [`watch`] gives every one a task and puts their
//! readings together. A sensor that is not there leaves its part of the [`Snapshot`] empty; one that
//! goes away empties it again. Sysfs, procfs and the bus are not trusted: what cannot be is as good
//! as absent.

pub mod battery;
mod bus;
mod files;
pub mod memory;
pub mod power_profile;
pub mod pressure;
mod ready;
pub mod replay;
pub mod sleep;
pub mod temperature;
#[cfg(test)]
mod testing;
mod trigger;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::future::{BoxFuture, join_all};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};

use nestd_policy::snapshot::{Battery, Memory, PowerProfile, Pressure, Snapshot};

/// How long [`watch`] waits for first readings.
const FIRST: Duration = Duration::from_secs(1);
/// No sensor looks more often than this.
const SHORTEST: Duration = Duration::from_millis(100);
/// Sensors are read at multiples of this.
const GRAIN: Duration = Duration::from_millis(100);

/// One source of readings.
pub trait Sensor: Send + 'static {
    /// For the log.
    fn name(&self) -> &'static str;

    /// The next reading: the first at once, each later one when there is something new. None: there
    /// will never be another, and what was said last no longer holds. Dropping the future loses no
    /// reading.
    fn next(&mut self) -> BoxFuture<'_, Option<Reading>>;
}

/// A sensor's part of the snapshot.
#[derive(Clone, Debug, PartialEq)]
pub enum Reading {
    /// `Snapshot::memory`
    Memory(Option<Memory>),
    /// `Snapshot::pressure`
    Pressure(Option<Pressure>),
    /// `Snapshot::on_ac` and `Snapshot::battery`
    Power(Option<bool>, Option<Battery>),
    /// `Snapshot::temperature_c`
    Temperature(Option<f64>),
    /// `Snapshot::power_profile`
    PowerProfile(Option<PowerProfile>),
    /// `Snapshot::sleeping`
    Sleeping(bool),
    /// The whole of it: a recording.
    All(Snapshot),
}

impl Reading {
    /// The same part of the snapshot without anything in it.
    fn emptied(&self) -> Self {
        match self {
            Self::Memory(_) => Self::Memory(None),
            Self::Pressure(_) => Self::Pressure(None),
            Self::Power(..) => Self::Power(None, None),
            Self::Temperature(_) => Self::Temperature(None),
            Self::PowerProfile(_) => Self::PowerProfile(None),
            Self::Sleeping(_) => Self::Sleeping(false),
            Self::All(_) => Self::All(Snapshot::default()),
        }
    }

    /// Puts it where it belongs; tells whether that changed anything.
    fn put(self, to: &mut Snapshot) -> bool {
        fn set<T: PartialEq>(place: &mut T, value: T) -> bool {
            let changed = *place != value;
            *place = value;
            changed
        }
        match self {
            Self::Memory(memory) => set(&mut to.memory, memory),
            Self::Pressure(pressure) => set(&mut to.pressure, pressure),
            Self::Power(on_ac, battery) => {
                set(&mut to.on_ac, on_ac) | set(&mut to.battery, battery)
            }
            Self::Temperature(celsius) => set(&mut to.temperature_c, celsius),
            Self::PowerProfile(profile) => set(&mut to.power_profile, profile),
            Self::Sleeping(sleeping) => set(&mut to.sleeping, sleeping),
            Self::All(snapshot) => set(to, snapshot),
        }
    }
}

/// Where the sensors look, and how often.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The root of procfs.
    pub proc: PathBuf,
    /// The root of sysfs.
    pub sys: PathBuf,
    /// How often to look at what does not tell by itself.
    pub poll: Duration,
    /// The system bus, for `UPower`, power-profiles-daemon and logind; None: do without them.
    pub bus: Option<zbus::Connection>,
    /// The temperature sensors that count, by their labels; empty: all.
    pub temperature: Vec<String>,
    /// What systemd gave to be told of memory pressure.
    pub pressure_watch: Option<pressure::Watch>,
    /// Where the battery is read.
    pub battery: battery::Source,
    /// By which the rest of the daemon says that the device may sleep.
    pub release: sleep::Release,
}

impl Settings {
    /// This machine, with what systemd put into the environment.
    #[must_use]
    pub fn machine(bus: Option<zbus::Connection>) -> Self {
        Self {
            pressure_watch: pressure::Watch::from_environment(),
            ..Self::below(Path::new("/proc"), Path::new("/sys"), bus)
        }
    }

    /// These roots, and nothing from the environment.
    #[must_use]
    pub fn below(proc: &Path, sys: &Path, bus: Option<zbus::Connection>) -> Self {
        Self {
            proc: proc.to_owned(),
            sys: sys.to_owned(),
            poll: Duration::from_secs(5),
            bus,
            temperature: Vec::new(),
            pressure_watch: None,
            battery: battery::Source::default(),
            release: sleep::Release::default(),
        }
    }
}

/// The sensors of these settings.
#[must_use]
pub fn live(settings: &Settings) -> Vec<Box<dyn Sensor>> {
    let mut sensors: Vec<Box<dyn Sensor>> = vec![
        Box::new(memory::Sensor::new(settings)),
        Box::new(pressure::Sensor::new(settings)),
        Box::new(temperature::Sensor::new(settings)),
    ];
    sensors.extend(battery::sensor(settings));
    if let Some(bus) = &settings.bus {
        sensors.push(Box::new(power_profile::Sensor::new(bus)));
        sensors.push(Box::new(sleep::Sensor::new(bus, settings.release.clone())));
    }
    sensors
}

/// Gives each sensor a task, and waits until each has spoken once or a second has passed. The tasks
/// end when the last receiver is dropped.
pub async fn watch(sensors: Vec<Box<dyn Sensor>>) -> watch::Receiver<Snapshot> {
    let (sender, receiver) = watch::channel(Snapshot::default());
    let sender = Arc::new(sender);
    let follow = |sensor| {
        let (first, spoken) = oneshot::channel();
        tokio::spawn(follow(sensor, Arc::clone(&sender), first));
        spoken
    };
    let spoken: Vec<_> = sensors.into_iter().map(follow).collect();
    // Who waits for changes waits on, and is not told of an end, when every sensor has ended.
    tokio::spawn(async move { sender.closed().await });
    let spoken = join_all(spoken);
    if timeout(FIRST, spoken).await.is_err() {
        tracing::debug!("a sensor takes its time");
    }
    receiver
}

/// One sensor's task.
async fn follow(
    mut sensor: Box<dyn Sensor>,
    to: Arc<watch::Sender<Snapshot>>,
    first: oneshot::Sender<()>,
) {
    let mut first = Some(first);
    let mut last = None;
    loop {
        let reading = tokio::select! {
            () = to.closed() => return,
            reading = sensor.next() => reading,
        };
        let Some(reading) = reading else { break };
        last = Some(reading.emptied());
        to.send_if_modified(|snapshot| reading.put(snapshot));
        if let Some(first) = first.take() {
            let _ = first.send(());
        }
    }
    tracing::debug!(sensor = sensor.name(), "has nothing to say any more");
    if let Some(empty) = last {
        to.send_if_modified(|snapshot| empty.put(snapshot));
    }
}

/// A slow clock: due at once, then each time a period after it was waited for. Dropping the future
/// loses nothing, and a slow reader does not make it hurry.
struct Every {
    period: Duration,
    due: Instant,
}

impl Every {
    fn new(period: Duration) -> Self {
        Self { period: period.max(SHORTEST), due: Instant::now() }
    }

    async fn tick(&mut self) {
        sleep_until(self.due).await;
        self.again_in(self.period);
    }

    fn again_in(&mut self, wait: Duration) {
        let now = Instant::now();
        self.due = together(now.checked_add(wait).unwrap_or(now + Duration::from_secs(3600)));
    }
}

/// The nearest of the times at which sensors are read, all of them by the same clock: what is due at about the
/// same time wakes an idle device once.
fn together(due: Instant) -> Instant {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    let began = *BEGAN.get_or_init(Instant::now);
    let half = GRAIN / 2;
    let over = (due + half).saturating_duration_since(began).as_nanos() % GRAIN.as_nanos();
    due + half - Duration::from_nanos(u64::try_from(over).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::testing::said;
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn sensors_are_read_together() {
        let (mut one, mut other) =
            (Every::new(Duration::from_secs(5)), Every::new(Duration::from_secs(5)));
        one.tick().await;
        // The first one's reading took a while.
        tokio::time::sleep(Duration::from_millis(20)).await;
        other.tick().await;
        let waited = one.due - Instant::now();
        assert!(waited > Duration::from_millis(4850) && waited < Duration::from_millis(5050));
        let apart = one.due.max(other.due) - one.due.min(other.due);
        assert!(apart.is_zero() || apart == GRAIN, "{apart:?}");
        assert_eq!(together(one.due), one.due);
    }

    /// Says what a test tells it to say; ends when the test drops its end.
    struct Told(tokio::sync::mpsc::UnboundedReceiver<Reading>);

    impl Sensor for Told {
        fn name(&self) -> &'static str {
            "told"
        }

        fn next(&mut self) -> BoxFuture<'_, Option<Reading>> {
            Box::pin(self.0.recv())
        }
    }

    fn told() -> (tokio::sync::mpsc::UnboundedSender<Reading>, Box<dyn Sensor>) {
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
        (sender, Box::new(Told(receiver)))
    }

    #[tokio::test]
    async fn readings_come_together_and_go_with_their_sensor() {
        let ((power, a), (sleep, b)) = (told(), told());
        power.send(Reading::Power(Some(true), None)).unwrap();
        sleep.send(Reading::Sleeping(true)).unwrap();
        let mut receiver = watch(vec![a, b]).await;
        let both = Snapshot { on_ac: Some(true), sleeping: true, ..Snapshot::default() };
        assert_eq!(*receiver.borrow_and_update(), both);
        power.send(Reading::Power(Some(true), None)).unwrap();
        power.send(Reading::Power(Some(false), None)).unwrap();
        said(receiver.changed()).await.unwrap();
        assert_eq!(receiver.borrow_and_update().on_ac, Some(false));
        drop(power);
        said(receiver.changed()).await.unwrap();
        let left = Snapshot { sleeping: true, ..Snapshot::default() };
        assert_eq!(*receiver.borrow_and_update(), left);
        drop(receiver);
        said(sleep.closed()).await;
    }

    #[tokio::test]
    async fn the_end_of_all_sensors_is_not_an_end() {
        let (power, sensor) = told();
        power.send(Reading::Power(Some(true), None)).unwrap();
        let mut receiver = watch(vec![sensor]).await;
        assert_eq!(receiver.borrow_and_update().on_ac, Some(true));
        drop(power);
        said(receiver.changed()).await.unwrap();
        assert_eq!(*receiver.borrow_and_update(), Snapshot::default());
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(receiver.has_changed().is_ok_and(|changed| !changed));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_sensor_does_not_hold_up_the_start() {
        let (_silent, sensor) = told();
        let receiver = watch(vec![sensor]).await;
        assert_eq!(*receiver.borrow(), Snapshot::default());
    }

    #[tokio::test]
    async fn an_empty_device_has_an_empty_snapshot() {
        let root = tempfile::tempdir().unwrap();
        let settings = Settings::below(root.path(), root.path(), None);
        let receiver = watch(live(&settings)).await;
        let mut snapshot = receiver.borrow().clone();
        // sysinfo knows the machine whatever the roots are.
        snapshot.memory = None;
        assert_eq!(snapshot, Snapshot::default());
    }
}
