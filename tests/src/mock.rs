//! Services of the system bus, played by python-dbusmock's templates on the test's own bus.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use zbus::wire::DynamicType;
use zbus::{Connection, Variant};

/// A service that runs. Dropping it takes its name off the bus.
pub struct Mock {
    process: Child,
    bus: Connection,
    name: &'static str,
}

impl Mock {
    /// Starts a template, and waits for its name.
    pub async fn start(address: &str, template: &str, name: &'static str) -> Self {
        // Debian's own Python has the module, whatever else is in the path.
        let process = Command::new("/usr/bin/python3")
            .args(["-m", "dbusmock", "--template", template])
            .env("DBUS_SYSTEM_BUS_ADDRESS", address)
            .stdout(Stdio::null())
            .spawn()
            .expect("python3 starts (Debian's package python3-dbusmock; ./test.sh installs it)");
        let bus =
            zbus::connection::Builder::address(address).build().await.expect("the bus answers");
        let began = Instant::now();
        let owned = || async {
            let bus = zbus::fdo::DBusProxy::new(&bus).await.expect("the bus answers");
            bus.name_has_owner(name.try_into().expect("a name")).await.expect("the bus answers")
        };
        while !owned().await {
            assert!(began.elapsed() < Duration::from_secs(20), "{template} takes no name");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Self { process, bus, name }
    }

    /// Calls a method.
    pub async fn call(
        &self,
        path: &str,
        interface: &str,
        method: &str,
        body: &(impl serde::Serialize + DynamicType),
    ) {
        self.bus
            .call_method(Some(self.name), path, Some(interface), method, body)
            .await
            .expect("the template knows the method");
    }

    /// Sets a property, which is told by `PropertiesChanged`.
    pub async fn set(&self, path: &str, interface: &str, property: &str, value: Variant<'_>) {
        let properties = "org.freedesktop.DBus.Properties";
        self.call(path, properties, "Set", &(interface, property, value)).await;
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
