//! What is scraped: the counts, and the state at that moment.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use tokio::sync::Mutex;

use nestd_policy::level::Level;
use nestd_policy::snapshot::PowerProfile;

use crate::api::Core;
use crate::types::State as DaemonState;

/// What is in memory is looked up no more often than this: it takes a look at every page of the model.
const PAGES: Duration = Duration::from_secs(1);
const MIB: f64 = 1_048_576.0;

/// Everything that is scraped.
pub(super) struct Exporter {
    registry: Registry,
    core: Core,
    pages: Arc<Pages>,
    /// When the pages were looked up. Held during a scrape: they go one at a time.
    looked: Mutex<Option<Instant>>,
}

impl Exporter {
    pub(super) fn new(core: Core) -> Self {
        let pages = Arc::default();
        let mut registry = Registry::with_prefix("nestd");
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        registry.register("build", "The daemon's version", Info::new(version));
        core.service.metrics().register(&mut registry);
        registry.register_collector(Box::new(Now {
            core: core.clone(),
            pages: Arc::clone(&pages),
            began: SystemTime::now(),
        }));
        Self { registry, core, pages, looked: Mutex::default() }
    }

    /// The whole of it, in the `OpenMetrics` text format.
    pub(super) async fn text(self: Arc<Self>) -> Result<String, fmt::Error> {
        let mut looked = self.looked.lock().await;
        if looked.is_none_or(|at| at.elapsed() >= PAGES) {
            let service = Arc::clone(&self.core.service);
            let resident = tokio::task::spawn_blocking(move || service.resident()).await;
            *lock(&self.pages) = resident.unwrap_or_default();
            *looked = Some(Instant::now());
        }
        self.core.service.metrics().settle();
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

type Pages = std::sync::Mutex<Vec<(&'static str, u64)>>;

fn lock(pages: &Pages) -> std::sync::MutexGuard<'_, Vec<(&'static str, u64)>> {
    pages.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The state at the moment of a scrape.
struct Now {
    core: Core,
    pages: Arc<Pages>,
    began: SystemTime,
}

impl fmt::Debug for Now {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Now")
    }
}

impl Collector for Now {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut gauges = Gauges(encoder);
        let began = self.began.duration_since(SystemTime::UNIX_EPOCH).ok();
        let began = began.map(|began| began.as_secs_f64());
        gauges.one(
            "start_time",
            "When the daemon started, since 1970",
            Some(&Unit::Seconds),
            began,
        )?;
        let resident = resident_bytes().map(|bytes| bytes as f64);
        gauges.one(
            "resident",
            "The daemon's memory, mapped files included",
            Some(&Unit::Bytes),
            resident,
        )?;
        let pages = lock(&self.pages).clone();
        gauges.each(
            "model_resident",
            "The model's memory by part; kv: what all KV caches take",
            Some(&Unit::Bytes),
            pages.iter().map(|(part, bytes)| ([("part", *part)], *bytes as f64)),
        )?;
        self.service(&mut gauges)?;
        self.governor(&mut gauges)
    }
}

impl Now {
    fn service(&self, gauges: &mut Gauges<'_>) -> fmt::Result {
        let report = self.core.service.report();
        let requests = [("running", report.running), ("queued", report.queued)];
        gauges.each(
            "requests_active",
            "Requests that generate, and that wait",
            None,
            requests.map(|(state, count)| ([("state", state)], f64::from(count))),
        )?;
        let states = [
            ("no-model", DaemonState::NoModel),
            ("loading", DaemonState::Loading),
            ("ready", DaemonState::Ready),
            ("parked", DaemonState::Parked),
            ("draining", DaemonState::Draining),
        ];
        let current = report.status.state;
        gauges.choice(
            "state",
            "The daemon's state: 1 for the one it is in",
            "state",
            states,
            &current,
        )?;
        let loaded = report.status.loaded.as_ref().map(|loaded| {
            let labels = [
                ("model", loaded.model.as_str()),
                ("engine", loaded.engine.name()),
                ("size", loaded.size.as_str()),
            ];
            (labels, 1.0)
        });
        gauges.each("model", "The model in memory and its size", None, loaded)
    }

    fn governor(&self, gauges: &mut Gauges<'_>) -> fmt::Result {
        let report = self.core.governor.report();
        let ratio = Unit::Other("ratio".into());
        let watts = Unit::Other("watts".into());
        if let Some(decision) = &report.decision {
            let levels = Level::ALL.map(|level| (level.name(), level));
            let help = "The governor's level: 1 for the one it is at";
            gauges.choice("level", help, "level", levels, &decision.level)?;
        }
        let energy = report.energy_per_token_j;
        gauges.one(
            "energy_per_token",
            "What a token costs the batteries",
            Some(&Unit::Joules),
            energy,
        )?;
        let snapshot = report.snapshot;
        let mib = |mib: u64| mib as f64 * MIB;
        let memory = snapshot.memory;
        let available = memory.map(|memory| mib(memory.available_mib));
        let help = "Memory that could be taken without swapping";
        gauges.one("memory_available", help, Some(&Unit::Bytes), available)?;
        let total = memory.map(|memory| mib(memory.total_mib));
        gauges.one("memory_total", "Memory that there is", Some(&Unit::Bytes), total)?;
        let swap = memory.map(|memory| mib(memory.swap_used_mib));
        gauges.one("swap_used", "Memory that is swapped out", Some(&Unit::Bytes), swap)?;
        let pressure = snapshot.pressure.map(|pressure| {
            let kinds = [("some", pressure.some_avg10), ("full", pressure.full_avg10)];
            kinds.map(|(kind, percent)| ([("kind", kind)], percent / 100.0))
        });
        let help = "Share of ten seconds in which some, or all, programs waited for memory";
        gauges.each("memory_pressure", help, Some(&ratio), pressure.into_iter().flatten())?;
        let battery = snapshot.battery;
        let charge = battery.map(|battery| battery.percent / 100.0);
        gauges.one("battery", "Charge of all batteries together", Some(&ratio), charge)?;
        let power = battery.and_then(|battery| battery.power_w);
        gauges.one("battery_power", "What leaves the batteries", Some(&watts), power)?;
        let on_ac = snapshot.on_ac.map(|on| f64::from(u8::from(on)));
        gauges.one("on_ac", "1 while mains are connected", None, on_ac)?;
        let temperature = snapshot.temperature_c;
        gauges.one("temperature", "The hottest sensor", Some(&Unit::Celsius), temperature)?;
        if let Some(profile) = snapshot.power_profile {
            let profiles = PowerProfile::ALL.map(|profile| (profile.name(), profile));
            let help = "The person's power profile: 1 for the one that is chosen";
            gauges.choice("power_profile", help, "profile", profiles, &profile)?;
        }
        Ok(())
    }
}

/// Writes gauges; what is not known has no series.
struct Gauges<'a>(DescriptorEncoder<'a>);

impl Gauges<'_> {
    fn one(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        value: Option<f64>,
    ) -> fmt::Result {
        let Some(value) = value else { return Ok(()) };
        let encoder = self.0.encode_descriptor(name, &sentence(help), unit, MetricType::Gauge)?;
        ConstGauge::new(value).encode(encoder)
    }

    fn each<'l, const LABELS: usize>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        rows: impl IntoIterator<Item = ([(&'l str, &'l str); LABELS], f64)>,
    ) -> fmt::Result {
        let mut rows = rows.into_iter().peekable();
        if rows.peek().is_none() {
            return Ok(());
        }
        let mut encoder =
            self.0.encode_descriptor(name, &sentence(help), unit, MetricType::Gauge)?;
        for (labels, value) in rows {
            ConstGauge::new(value).encode(encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }

    /// One series for each of a closed set: 1 for the one that is the case.
    fn choice<T: PartialEq, const COUNT: usize>(
        &mut self,
        name: &str,
        help: &str,
        label: &'static str,
        all: [(&'static str, T); COUNT],
        current: &T,
    ) -> fmt::Result {
        let value = |is: bool| f64::from(u8::from(is));
        let rows = all.map(|(name, one)| ([(label, name)], value(one == *current)));
        self.each(name, help, None, rows)
    }
}

/// As the registry writes those of the counts.
fn sentence(help: &str) -> String {
    format!("{help}.")
}

/// The daemon's resident set.
fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten()?;
    pages.checked_mul(u64::try_from(page).ok()?)
}
