//! What `UPower` says of all batteries together (its display device) and of the mains.
//!
//! By its signals, without polling. `UPower` may be started by the first call, may never come, and
//! may be restarted: see [`Watched`].

use futures::future::BoxFuture;
use nestd_policy::snapshot::{Battery, Warning};
use zbus::Connection;

use super::super::bus::{Object, Properties, Watched};
use super::{Power, Reading, Sensor, percent, tidy, until_empty, watts};

const MANAGER: Object = Object {
    name: "org.freedesktop.UPower",
    path: "/org/freedesktop/UPower",
    interface: "org.freedesktop.UPower",
};
const DISPLAY: Object = Object {
    name: "org.freedesktop.UPower",
    path: "/org/freedesktop/UPower/devices/DisplayDevice",
    interface: "org.freedesktop.UPower.Device",
};

/// `State` of a device.
const CHARGING: u32 = 1;
const DISCHARGING: u32 = 2;
const EMPTY: u32 = 3;
const PENDING_DISCHARGE: u32 = 6;

/// `WarningLevel` of a device.
const LOW: u32 = 3;
const CRITICAL: u32 = 4;
const ACTION: u32 = 5;

/// The sensor.
pub struct UPower {
    manager: Watched,
    display: Watched,
    /// What the manager said last; None: nothing yet.
    on_ac: Option<Word<Option<bool>>>,
    /// What the display device said last; None: nothing yet.
    battery: Option<Word<Option<Battery>>>,
    /// What was said last.
    told: Option<Word<Power>>,
}

/// A word of a service; None: it is away.
type Word<T> = Option<T>;

impl UPower {
    /// On this bus.
    #[must_use]
    pub fn new(bus: &Connection) -> Self {
        let (manager, display) = (Watched::new(bus, MANAGER), Watched::new(bus, DISPLAY));
        Self { manager, display, on_ac: None, battery: None, told: None }
    }

    /// What it says next. `Some(None)`: it is away. None: the bus is.
    pub(super) async fn power(&mut self) -> Option<Word<Power>> {
        loop {
            tokio::select! {
                said = self.manager.next() => {
                    let on_ac = |said: Properties| said.get("OnBattery").map(|on: bool| !on);
                    self.on_ac = Some(said?.map(on_ac));
                }
                said = self.display.next() => {
                    self.battery = Some(said?.map(|said| read(&said).map(tidy)));
                }
            }
            let (Some(on_ac), Some(battery)) = (self.on_ac, self.battery) else { continue };
            // They come and go together, but one after the other.
            let word = on_ac.zip(battery);
            if self.told != Some(word) {
                self.told = Some(word);
                return Some(word);
            }
        }
    }
}

fn read(said: &Properties) -> Option<Battery> {
    if !said.get("IsPresent").unwrap_or(false) {
        return None;
    }
    let percent = percent(said.get("Percentage")?)?;
    let state = said.get("State").unwrap_or(0);
    let rate = said.get("EnergyRate").and_then(watts);
    // A zero that cannot be is UPower's word for "unknown".
    let power_w = match state {
        CHARGING => rate.filter(|rate| *rate > 0.0).map(|rate| -rate),
        DISCHARGING | EMPTY | PENDING_DISCHARGE => rate.filter(|rate| *rate > 0.0),
        0 => None,
        _ => rate,
    };
    let seconds: Option<i64> = said.get("TimeToEmpty").filter(|_| state == DISCHARGING);
    let time_to_empty_s = seconds.and_then(|seconds| until_empty(seconds as f64));
    let warning = match said.get("WarningLevel").unwrap_or(0) {
        LOW => Some(Warning::Low),
        CRITICAL => Some(Warning::Critical),
        ACTION => Some(Warning::Action),
        // Unknown, none, or that of an uninterruptible supply which is in use.
        _ => None,
    };
    Some(Battery { percent, power_w, time_to_empty_s, warning })
}

impl Sensor for UPower {
    fn name(&self) -> &'static str {
        "battery (UPower)"
    }

    fn next(&mut self) -> BoxFuture<'_, Option<Reading>> {
        Box::pin(async move {
            let (on_ac, battery) = self.power().await?.unwrap_or_default();
            Some(Reading::Power(on_ac, battery))
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::super::testing::{Bus, said, until};
    use super::*;

    struct Manager {
        on_battery: bool,
    }

    #[zbus::interface(name = "org.freedesktop.UPower")]
    impl Manager {
        #[zbus(property)]
        fn on_battery(&self) -> bool {
            self.on_battery
        }
    }

    struct Display {
        present: bool,
        percentage: f64,
        rate: f64,
        seconds: i64,
        state: u32,
    }

    #[zbus::interface(name = "org.freedesktop.UPower.Device")]
    impl Display {
        #[zbus(property)]
        fn is_present(&self) -> bool {
            self.present
        }

        #[zbus(property)]
        fn percentage(&self) -> f64 {
            self.percentage
        }

        #[zbus(property)]
        fn energy_rate(&self) -> f64 {
            self.rate
        }

        #[zbus(property)]
        fn time_to_empty(&self) -> i64 {
            self.seconds
        }

        #[zbus(property)]
        fn state(&self) -> u32 {
            self.state
        }
    }

    /// A `UPower` that discharges.
    pub async fn fake(bus: &Bus) -> Connection {
        let display = Display {
            present: true,
            percentage: 87.5,
            rate: 12.5,
            seconds: 3600,
            state: DISCHARGING,
        };
        let builder = bus
            .builder()
            .serve_at(MANAGER.path, Manager { on_battery: true })
            .serve_at(DISPLAY.path, display);
        said(builder.name(MANAGER.name).build()).await.unwrap()
    }

    pub fn battery(percent: f64, power_w: Option<f64>, time: Option<u64>) -> Battery {
        Battery { percent, power_w, time_to_empty_s: time, warning: None }
    }

    #[tokio::test]
    async fn it_follows_what_changes() {
        let bus = Bus::start().await;
        let mut sensor = UPower::new(&bus.connect().await);
        assert_eq!(said(sensor.next()).await, Some(Reading::Power(None, None)));
        let service = fake(&bus).await;
        let discharging = Some(battery(87.5, Some(12.5), Some(3600)));
        until(&mut sensor, Reading::Power(Some(false), discharging)).await;

        let manager = service.object_server().interface::<_, Manager>(MANAGER.path).await.unwrap();
        manager.get_mut().await.on_battery = false;
        let emitter = manager.signal_emitter();
        manager.get().await.on_battery_changed(emitter).await.unwrap();
        until(&mut sensor, Reading::Power(Some(true), discharging)).await;

        let display = service.object_server().interface::<_, Display>(DISPLAY.path).await.unwrap();
        let emitter = display.signal_emitter();
        display.get_mut().await.state = CHARGING;
        display.get().await.state_changed(emitter).await.unwrap();
        until(&mut sensor, Reading::Power(Some(true), Some(battery(87.5, Some(-12.5), None))))
            .await;

        {
            let mut display = display.get_mut().await;
            (display.rate, display.seconds) = (f64::NAN, i64::MIN);
            (display.percentage, display.state) = (12.0, 99);
        }
        display.get().await.percentage_changed(emitter).await.unwrap();
        until(&mut sensor, Reading::Power(Some(true), Some(battery(12.0, None, None)))).await;

        display.get_mut().await.percentage = f64::INFINITY;
        display.get().await.percentage_changed(emitter).await.unwrap();
        until(&mut sensor, Reading::Power(Some(true), None)).await;

        {
            let mut display = display.get_mut().await;
            (display.percentage, display.present) = (50.0, false);
        }
        drop((manager, display));
        drop(service);
        until(&mut sensor, Reading::Power(None, None)).await;
    }
}
