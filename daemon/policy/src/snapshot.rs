//! What the governor knows of the device at one moment.

/// What the sensors say at one moment. `None`: there is no such sensor, or it does not answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Memory of the machine and of the daemon's control group.
    pub memory: Option<Memory>,
    /// How much programs wait for memory.
    pub pressure: Option<Pressure>,
    /// Whether mains are connected.
    pub on_ac: Option<bool>,
    /// All batteries together.
    pub battery: Option<Battery>,
    /// The hottest of the configured sensors, in degrees Celsius.
    pub temperature_c: Option<f64>,
    /// The profile of power-profiles-daemon.
    pub power_profile: Option<PowerProfile>,
    /// The device is about to sleep.
    pub sleeping: bool,
}

/// Memory, the smaller of the machine's and the control group's where both have a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// What could be taken without swapping, in MiB.
    pub available_mib: u64,
    /// What there is, in MiB.
    pub total_mib: u64,
    /// Swap in use, in MiB.
    pub swap_used_mib: u64,
    /// The daemon's own resident set, in MiB.
    pub resident_mib: u64,
}

/// Pressure stall information: the share of the last ten seconds in which programs waited for
/// memory, in percent (kernel documentation, accounting/psi). The higher of the machine's and the
/// control group's.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressure {
    /// At least one program waited.
    pub some_avg10: f64,
    /// All of them waited.
    pub full_avg10: f64,
    /// The kernel or systemd has just reported a stall that crossed a threshold.
    pub stalled: bool,
}

/// All batteries of the device together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Battery {
    /// Charge, in percent of what the batteries hold.
    pub percent: f64,
    /// The rate at which energy leaves the batteries, in watts; negative while they charge.
    pub power_w: Option<f64>,
    /// Until empty, in seconds, while discharging.
    pub time_to_empty_s: Option<u64>,
    /// What the system warns of; None: of nothing, or there is nobody who would.
    pub warning: Option<Warning>,
}

/// What `UPower` warns of (`WarningLevel`), by thresholds of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Warning {
    /// Little is left.
    Low,
    /// Very little is left.
    Critical,
    /// The system is about to turn itself off.
    Action,
}

impl Warning {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Low, Self::Critical, Self::Action];

    /// The name that `UPower` gives it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Critical => "critical",
            Self::Action => "action",
        }
    }
}

/// What the person chose in power-profiles-daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerProfile {
    /// Battery before speed.
    PowerSaver,
    /// The default.
    Balanced,
    /// Speed before battery.
    Performance,
}

impl PowerProfile {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::PowerSaver, Self::Balanced, Self::Performance];

    /// The name that power-profiles-daemon gives it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::PowerSaver => "power-saver",
            Self::Balanced => "balanced",
            Self::Performance => "performance",
        }
    }

    /// The profile of that name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|profile| profile.name() == name)
    }
}
