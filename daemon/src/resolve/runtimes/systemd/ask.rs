//! What systemd and systemd-machined are asked, and what is made of it.
//!
//! Labels of a unit are its properties as systemd calls them: `ControlGroup`, and `PrivateNetwork` (`yes` or absent). Those
//! of a machine are `Class` (`container` or `vm`), `Service` (what started it, e.g. `systemd-nspawn`) and `Unit`.

use super::bus::{Bus, Object, Refusal};
use crate::resolve::workload::{Role, Workload};
use std::collections::BTreeMap;
use std::path::PathBuf;
use zbus::OwnedObjectPath;

/// Longest unit name (`UNIT_NAME_MAX` of systemd) and machine name (`HOST_NAME_MAX`).
const MAX_UNIT: usize = 255;
const MAX_MACHINE: usize = 64;

/// The manager of units.
pub(super) const SYSTEMD: Object<'static> = Object {
    service: "org.freedesktop.systemd1",
    path: "/org/freedesktop/systemd1",
    interface: "org.freedesktop.systemd1.Manager",
};

const MACHINED: Object<'static> = Object {
    service: "org.freedesktop.machine1",
    path: "/org/freedesktop/machine1",
    interface: "org.freedesktop.machine1.Manager",
};

/// Something that can be asked about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Thing {
    /// A unit.
    Unit(String),
    /// A machine.
    Machine(String),
}

impl Thing {
    /// The id of its workload.
    pub(super) fn id(&self) -> &str {
        match self {
            Thing::Unit(name) | Thing::Machine(name) => name,
        }
    }

    /// Whether systemd could have something of this name: it comes from a cgroup's path, where anything may stand.
    pub(super) fn is_possible(&self) -> bool {
        let of = |name: &str, most: usize, also: &str| {
            let fine = |c: char| c.is_ascii_alphanumeric() || also.contains(c);
            (1..=most).contains(&name.len()) && name.chars().all(fine)
        };
        match self {
            Thing::Unit(name) => of(name, MAX_UNIT, ":-_.\\@") && exec_interface(name).is_some(),
            Thing::Machine(name) => of(name, MAX_MACHINE, "-_."),
        }
    }
}

/// An answer about something that is there.
#[derive(Debug)]
pub(super) struct Found {
    /// What is known of it.
    pub(super) workload: Workload,
    /// Its object on the bus.
    pub(super) path: String,
}

/// The rule that tells of changes of a thing, matched by the bus. One of its two signals at each change is enough.
fn rule(thing: &Thing, path: &str) -> String {
    match thing {
        Thing::Unit(_) => format!(
            "type='signal',sender='org.freedesktop.systemd1',path='{path}',\
             interface='org.freedesktop.DBus.Properties',member='PropertiesChanged',\
             arg0='org.freedesktop.systemd1.Unit'"
        ),
        Thing::Machine(name) => format!(
            "type='signal',sender='org.freedesktop.machine1',path='{}',interface='{}',arg0='{name}'",
            MACHINED.path, MACHINED.interface
        ),
    }
}

/// A rule that the bus has taken, or the reason why not.
pub(super) type Watch = Result<String, Refusal>;

/// Asks about a thing; `None` if it is not there. A thing that is not watched yet is watched first, so that no change
/// after the answer is missed.
pub(super) async fn ask(
    bus: &Bus,
    thing: &Thing,
    watched: bool,
) -> Result<(Option<Watch>, Option<Found>), Refusal> {
    let path = match find(bus, thing).await {
        Ok(path) => path.to_string(),
        Err(Refusal::Unknown | Refusal::NoService) => return Ok((None, None)),
        Err(refusal) => return Err(refusal),
    };
    let mut watch = None;
    if !watched {
        let rule = rule(thing, &path);
        watch = Some(bus.watch(&rule).await.map(|()| rule));
    }
    let workload = match thing {
        Thing::Unit(name) => unit(bus, name, &path).await,
        Thing::Machine(name) => machine(bus, name, &path).await,
    };
    match workload {
        Ok(workload) => Ok((watch, workload.map(|workload| Found { workload, path }))),
        Err(refusal) => {
            if let Some(Ok(rule)) = watch {
                let _ = bus.unwatch(&rule).await;
            }
            Err(refusal)
        }
    }
}

/// The object of a thing. `GetUnit` comes first also because systemd loads a unit whose object is merely looked at.
async fn find(bus: &Bus, thing: &Thing) -> Result<OwnedObjectPath, Refusal> {
    match thing {
        Thing::Unit(name) => bus.call(SYSTEMD, "GetUnit", name).await,
        Thing::Machine(name) => bus.call(MACHINED, "GetMachine", name).await,
    }
}

/// The interface with the properties of what runs in a unit.
fn exec_interface(name: &str) -> Option<&'static str> {
    Some(match name.rsplit('.').next()? {
        "service" => "org.freedesktop.systemd1.Service",
        "scope" => "org.freedesktop.systemd1.Scope",
        "socket" => "org.freedesktop.systemd1.Socket",
        "mount" => "org.freedesktop.systemd1.Mount",
        "swap" => "org.freedesktop.systemd1.Swap",
        _ => return None,
    })
}

async fn unit(bus: &Bus, name: &str, path: &str) -> Result<Option<Workload>, Refusal> {
    let unit = Object { path, interface: "org.freedesktop.systemd1.Unit", ..SYSTEMD };
    let state: String = bus.get(unit, "ActiveState").await?.unwrap_or_default();
    // systemd keeps a unit that has ended in its memory for as long as others refer to it.
    if matches!(&*state, "inactive" | "failed" | "") {
        return Ok(None);
    }
    let id: Option<String> = bus.get(unit, "Id").await?;
    let description = bus.get(unit, "Description").await?.unwrap_or_default();
    let exec = Object { interface: exec_interface(name).unwrap_or(unit.interface), ..unit };
    let private: bool = bus.get(exec, "PrivateNetwork").await?.unwrap_or_default();
    let netns: Option<String> = bus.get(exec, "NetworkNamespacePath").await?;
    let netns = netns.filter(|path| !path.is_empty()).map(PathBuf::from);
    // systemd 252 tells it of the unit that joins, not of the one that is joined.
    let mut joins: Vec<String> = Vec::new();
    // Without a network of its own, a unit that joins another one shares its /tmp, but no network.
    if private || netns.is_some() {
        joins = bus.get(unit, "JoinsNamespaceOf").await?.unwrap_or_default();
    }
    let pid: Option<u32> = bus.get(exec, "MainPID").await?;
    let cgroup: Option<String> = bus.get(exec, "ControlGroup").await?;
    let mut labels = BTreeMap::new();
    if let Some(cgroup) = cgroup.filter(|path| !path.is_empty()) {
        labels.insert("ControlGroup".to_owned(), cgroup);
    }
    if private {
        labels.insert("PrivateNetwork".to_owned(), "yes".to_owned());
    }
    Ok(Some(Workload {
        id: name.into(),
        role: Role::Unit,
        name: id.filter(|id| !id.is_empty()).unwrap_or_else(|| name.to_owned()),
        description,
        pid: process(pid),
        netns,
        joins,
        labels: labels.into(),
        ..Workload::default()
    }))
}

async fn machine(bus: &Bus, name: &str, path: &str) -> Result<Option<Workload>, Refusal> {
    let machine = Object { path, interface: "org.freedesktop.machine1.Machine", ..MACHINED };
    let leader: Option<u32> = bus.get(machine, "Leader").await?;
    let mut labels = BTreeMap::new();
    for property in ["Class", "Service", "Unit"] {
        let value: Option<String> = bus.get(machine, property).await?;
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            labels.insert(property.to_owned(), value);
        }
    }
    Ok(Some(Workload {
        id: name.into(),
        role: Role::Machine,
        name: name.to_owned(),
        pid: process(leader),
        labels: labels.into(),
        ..Workload::default()
    }))
}

fn process(pid: Option<u32>) -> Option<i32> {
    i32::try_from(pid?).ok().filter(|pid| *pid > 0)
}
