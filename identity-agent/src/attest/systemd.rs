//! The `systemd` attestor: which unit a process is in, by the word of systemd over the system's bus.
//!
//! It is asked by the process' pidfd, and by its number where it is too old for that (before 253).

use tokio::sync::Mutex;
use zbus::{Connection, Fd, OwnedObjectPath, OwnedVariant};

use super::{
    AttestFailed, Attestor, Subject, causes,
    service::{Service, wait_for},
};

/// States `systemd:` selectors.
#[derive(Debug)]
pub struct Systemd {
    address: String,
    systemd: Service,
    /// Kept from one question to the next.
    bus: Mutex<Option<Connection>>,
}

impl Systemd {
    /// Asks over the bus at this address.
    pub fn new(address: String) -> Self {
        Self {
            address,
            systemd: Service::default(),
            bus: Mutex::default(),
        }
    }

    async fn connected(&self) -> zbus::Result<Connection> {
        let mut bus = self.bus.lock().await;
        if let Some(bus) = &*bus {
            return Ok(bus.clone());
        }
        let fresh = zbus::connection::Builder::address(self.address.as_str())
            .build()
            .await?;
        *bus = Some(fresh.clone());
        Ok(fresh)
    }

    /// ID and file of the unit; none for a process that is in none.
    async fn unit(&self, subject: &Subject<'_>) -> zbus::Result<Option<[String; 2]>> {
        let bus = self.connected().await?;
        let handle = (Fd::from(subject.process.handle()),);
        let path = match manager(&bus, "GetUnitByPIDFD", &handle).await {
            Ok(answer) => {
                let (path, _, _): (OwnedObjectPath, String, Vec<u8>) =
                    answer.body().deserialize()?;
                path
            }
            Err(error) if is(&error, UNKNOWN_METHOD) => {
                let number = u32::try_from(subject.process.pid()).unwrap_or_default();
                match manager(&bus, "GetUnitByPID", &(number,)).await {
                    Ok(answer) => answer.body().deserialize()?,
                    Err(error) if is(&error, NO_UNIT) => return Ok(None),
                    Err(error) => return Err(error),
                }
            }
            Err(error) if is(&error, NO_UNIT) => return Ok(None),
            Err(error) => return Err(error),
        };
        let property = async |name: &str| -> zbus::Result<String> {
            let question = ("org.freedesktop.systemd1.Unit", name);
            let answer = bus
                .call_method(Some(SYSTEMD), &path, Some(PROPERTIES), "Get", &question)
                .await?;
            let value: OwnedVariant = answer.body().deserialize()?;
            String::try_from(value)
        };
        Ok(Some([
            property("Id").await?,
            property("FragmentPath").await?,
        ]))
    }
}

async fn manager(
    bus: &Connection,
    method: &str,
    body: &(impl serde::Serialize + zbus::zvariant::DynamicType),
) -> zbus::Result<zbus::Message> {
    let manager = Some("org.freedesktop.systemd1.Manager");
    bus.call_method(
        Some(SYSTEMD),
        "/org/freedesktop/systemd1",
        manager,
        method,
        body,
    )
    .await
}

fn is(error: &zbus::Error, name: &str) -> bool {
    match error {
        zbus::Error::MethodError(found, _, _) => found.as_str() == name,
        zbus::Error::FDO(found) => zbus::DBusError::name(&**found).as_str() == name,
        _ => false,
    }
}

impl Attestor for Systemd {
    fn kind(&self) -> &'static str {
        "systemd"
    }

    fn attest(&self, subject: &Subject<'_>, add: &mut dyn FnMut(&str)) -> Result<(), AttestFailed> {
        let asked = async {
            let unit = self.unit(subject).await;
            unit.map_err(|error| AttestFailed::because("systemd", &error, causes(&error)))
        };
        let unit = self.systemd.ask("systemd", asked).inspect_err(|_| {
            // The next question begins anew.
            let _ = wait_for(async { *self.bus.lock().await = None });
        })?;
        let Some([id, file]) = unit else {
            return Ok(());
        };
        add(&format!("id:{id}"));
        if !file.is_empty() {
            add(&format!("fragment_path:{file}"));
        }
        Ok(())
    }
}

const SYSTEMD: &str = "org.freedesktop.systemd1";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
const UNKNOWN_METHOD: &str = "org.freedesktop.DBus.Error.UnknownMethod";
const NO_UNIT: &str = "org.freedesktop.systemd1.NoUnitForPID";
