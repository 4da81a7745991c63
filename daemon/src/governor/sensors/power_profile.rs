//! The profile of power-profiles-daemon, under its name of today or its first one.
//!
//! The governor's task owns it; it speaks when the daemon says that something changed. Where nobody
//! has either name there is no profile.

use futures::future::BoxFuture;
use nestd_policy::snapshot::PowerProfile;
use zbus::Connection;

use super::Reading;
use super::bus::{Object, Properties, Watched};

const TODAY: Object = Object {
    name: "org.freedesktop.UPower.PowerProfiles",
    path: "/org/freedesktop/UPower/PowerProfiles",
    interface: "org.freedesktop.UPower.PowerProfiles",
};
const FIRST: Object = Object {
    name: "net.hadess.PowerProfiles",
    path: "/net/hadess/PowerProfiles",
    interface: "net.hadess.PowerProfiles",
};

/// What a daemon says; None: it is away, or makes no sense.
type Word = Option<PowerProfile>;

/// The sensor.
pub struct Sensor {
    today: Watched,
    first: Watched,
    /// What each said last; None: nothing yet.
    said: [Option<Word>; 2],
    /// What was said last.
    told: Option<Reading>,
}

impl Sensor {
    /// On this bus.
    #[must_use]
    pub fn new(bus: &Connection) -> Self {
        let (today, first) = (Watched::new(bus, TODAY), Watched::new(bus, FIRST));
        Self { today, first, said: [None; 2], told: None }
    }
}

fn profile(properties: Option<&Properties>) -> Word {
    PowerProfile::parse(properties?.get("ActiveProfile")?)
}

impl super::Sensor for Sensor {
    fn name(&self) -> &'static str {
        "power profile"
    }

    fn next(&mut self) -> BoxFuture<'_, Option<Reading>> {
        Box::pin(async move {
            loop {
                let [today, first] = &mut self.said;
                tokio::select! {
                    said = self.today.next() => *today = Some(profile(said?.as_ref())),
                    said = self.first.next() => *first = Some(profile(said?.as_ref())),
                }
                let reading = match (*today, *first) {
                    (Some(Some(profile)), _) | (Some(None), Some(Some(profile))) => Some(profile),
                    (Some(None), Some(None)) => None,
                    _ => continue,
                };
                let reading = Reading::PowerProfile(reading);
                if self.told.as_ref() != Some(&reading) {
                    self.told = Some(reading.clone());
                    return Some(reading);
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Sensor as _;
    use super::super::testing::{Bus, said, until};
    use super::*;

    struct Fake(String);

    #[zbus::interface(name = "net.hadess.PowerProfiles")]
    impl Fake {
        #[zbus(property)]
        fn active_profile(&self) -> String {
            self.0.clone()
        }
    }

    struct Garbage(u32);

    #[zbus::interface(name = "org.freedesktop.UPower.PowerProfiles")]
    impl Garbage {
        #[zbus(property)]
        fn active_profile(&self) -> u32 {
            self.0
        }
    }

    async fn fake(bus: &Bus, profile: &str) -> Connection {
        let builder = bus.builder().serve_at(FIRST.path, Fake(profile.into()));
        said(builder.name(FIRST.name).build()).await.unwrap()
    }

    #[tokio::test]
    async fn it_follows_a_daemon_that_comes_changes_and_goes() {
        let bus = Bus::start().await;
        let mut sensor = Sensor::new(&bus.connect().await);
        assert_eq!(said(sensor.next()).await, Some(Reading::PowerProfile(None)));
        let daemon = fake(&bus, "balanced").await;
        until(&mut sensor, Reading::PowerProfile(Some(PowerProfile::Balanced))).await;
        let interface = daemon.object_server().interface::<_, Fake>(FIRST.path).await.unwrap();
        for (name, profile) in
            [("power-saver", Some(PowerProfile::PowerSaver)), ("warp speed", None)]
        {
            interface.get_mut().await.0 = name.into();
            let fake = interface.get().await;
            fake.active_profile_changed(interface.signal_emitter()).await.unwrap();
            drop(fake);
            until(&mut sensor, Reading::PowerProfile(profile)).await;
        }
        drop((interface, daemon));
        let _daemon = fake(&bus, "performance").await;
        until(&mut sensor, Reading::PowerProfile(Some(PowerProfile::Performance))).await;
    }

    #[tokio::test]
    async fn the_other_name_stands_in_for_garbage() {
        let bus = Bus::start().await;
        let builder = bus.builder().serve_at(TODAY.path, Garbage(7)).name(TODAY.name);
        let _garbage = said(builder.build()).await.unwrap();
        let _daemon = fake(&bus, "performance").await;
        let mut sensor = Sensor::new(&bus.connect().await);
        until(&mut sensor, Reading::PowerProfile(Some(PowerProfile::Performance))).await;
    }

    #[tokio::test]
    async fn the_end_of_the_bus_ends_it() {
        let bus = Bus::start().await;
        let mut sensor = Sensor::new(&bus.connect().await);
        assert_eq!(said(sensor.next()).await, Some(Reading::PowerProfile(None)));
        drop(bus);
        assert_eq!(said(sensor.next()).await, None);
    }
}
