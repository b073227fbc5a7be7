//! `netskoopctl entities [NAME]`.

use super::Context;
use crate::client::encode;
use crate::error::Error;
use crate::output::Screen;
use crate::table::Table;
use crate::text::{Line, Style};
use crate::time::Clock;
use netskoop_api::{Entities, Entity, Kind};

/// Columns of the words on the left of a single entity's screen.
const LABEL: usize = 12;

/// Lists all, or shows one.
pub(crate) async fn run(context: &mut Context<'_, '_>, name: Option<&str>) -> Result<(), Error> {
    match name {
        Some(name) => {
            let clock = context.clock.clone();
            let names = |entity: &Entity| vec![entity.id.name.clone()];
            let path = format!("/v1/entities/{}", encode(name));
            context.show(&path, Some(names), |entity, screen| show(entity, &clock, screen)).await
        }
        None => {
            let names = |all: &Entities| all.entities.iter().map(|entity| entity.id.name.clone()).collect();
            context.show("/v1/entities", Some(names), list).await
        }
    }
}

/// The screen of all.
fn list(all: &Entities, screen: &mut Screen<'_>) -> Result<(), Error> {
    let mut table = Table::new(&["KIND", "NAME", "NETNS", ">PIDS", "IPS", "FROM"]);
    for entity in &all.entities {
        let style = if entity.id.kind == Kind::Unknown { Style::Warn } else { Style::Plain };
        table.row([
            Line::new().styled(style, entity.id.kind.as_str()),
            entity.id.name.as_str().into(),
            entity.id.netns.to_string().into(),
            entity.processes.to_string().into(),
            joined(&entity.addresses).into(),
            joined(&entity.sources).into(),
        ]);
    }
    table.render(screen)
}

/// The screen of one.
fn show(entity: &Entity, clock: &Clock, screen: &mut Screen<'_>) -> Result<(), Error> {
    screen.line(
        &Line::new().styled(Style::Bold, &entity.id.name).plain(&format!("   {}", entity.id.kind.as_str())),
    )?;
    let leader = entity.leader.map(|pid| match &entity.comm {
        Some(comm) => format!("{comm}[{pid}]"),
        None => pid.to_string(),
    });
    let rows = [
        ("Netns", Some(entity.id.netns.to_string())),
        ("Namespace", entity.id.namespace.clone()),
        ("Pod", entity.id.pod.clone()),
        ("IPs", Some(joined(&entity.addresses))),
        ("Processes", Some(entity.processes.to_string())),
        ("Leader", leader),
        ("Container", entity.container_id.clone()),
        ("Cgroup", entity.cgroup.clone()),
        ("Mounts", (!entity.mounts.is_empty()).then(|| entity.mounts.join(", "))),
        ("From", Some(joined(&entity.sources))),
        ("Since", Some(clock.coarse(&entity.since))),
    ];
    for (label, value) in rows {
        if let Some(value) = value {
            screen.line(&Line::new().pad(2).styled(Style::Bold, label).pad(2 + LABEL).plain(&value))?;
        }
    }
    Ok(())
}

fn joined(words: &[String]) -> String {
    if words.is_empty() { "-".to_owned() } else { words.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{PLAIN, ctl, rendered};
    use super::*;
    use crate::fake::{Daemon, json};
    use jiff::{civil::date, tz::TimeZone};
    use netskoop_api::EntityRef;

    fn entity(kind: Kind, name: &str, netns: u32) -> Entity {
        Entity {
            processes: 4,
            leader: Some(812),
            comm: Some("sh\x1b[31m".into()),
            addresses: vec!["192.0.2.2".into(), "fd00::2".into()],
            since: "2026-11-19T12:01:03.5Z".into(),
            ..Entity::of(EntityRef { kind, name: name.into(), namespace: None, pod: None, netns })
        }
    }

    #[test]
    fn the_list_is_aligned() {
        let mut blue = entity(Kind::Netns, "blue", 4_026_532_377);
        blue.sources = vec!["/run/netns".into()];
        blue.addresses.clear();
        let all = Entities { generation: 1, entities: vec![entity(Kind::Host, "host", 4_026_531_840), blue] };
        let expected = "\
KIND   NAME  NETNS       PIDS  IPS                 FROM
host   host  4026531840     4  192.0.2.2, fd00::2  -
netns  blue  4026532377     4  -                   /run/netns
";
        assert_eq!(rendered(PLAIN, |screen| list(&all, screen)), expected);
    }

    #[test]
    fn one_entity_is_shown_whole_and_harmless() {
        let clock = Clock::fixed(TimeZone::UTC, date(2026, 11, 20));
        let text = rendered(PLAIN, |screen| show(&entity(Kind::Unknown, "x", 7), &clock, screen));
        let expected = "\
x   unknown
  Netns       7
  IPs         192.0.2.2, fd00::2
  Processes   4
  Leader      sh\\u{1b}[31m[812]
  From        -
  Since       2026-11-19 12:01:03
";
        assert_eq!(text, expected);
    }

    #[test]
    fn names_with_a_slash_are_one_segment() {
        let refusal = r#"{"error":{"code":"no_such_entity","message":"no entity 'a/b'"}}"#;
        let daemon = Daemon::answering(json(404, refusal));
        let outcome = ctl(&daemon, "entities a/b");
        assert_eq!(outcome.code, 4);
        assert_eq!(outcome.err, "netskoopctl: no entity 'a/b'\n  These exist:  netskoopctl entities\n");
        assert!(daemon.request().starts_with("GET /v1/entities/a%2Fb "));
    }
}
