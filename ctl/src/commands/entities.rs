//! `netskoopctl entities [[show] NAME]`.

use super::Context;
use crate::client::encode;
use crate::error::Error;
use crate::output::Screen;
use crate::table::Table;
use crate::text::{Line, Style, roughly, span};
use crate::time::Clock;
use netskoop_api::{Claim, ContainerInfo, Entities, Entity, Kind};
use std::collections::BTreeMap;

/// Columns of the words on the left of a single entity's screen.
const LABEL: usize = 12;
/// Addresses that the list shows of each entity; the others are counted.
const LISTED: usize = 3;
/// Digits of a container's id that people use.
const SHORT: usize = 12;

/// Lists all, or shows one. `show` alone is a name: an entity may be called so, and two words are only ever `show` and a
/// name.
pub(crate) async fn run(context: &mut Context<'_, '_>, words: &[String]) -> Result<(), Error> {
    let name = match words {
        [] => {
            let names = |all: &Entities| all.entities.iter().map(|entity| entity.id.name.clone()).collect();
            return context.show("/v1/entities", Some(names), list).await;
        }
        [name] => name,
        [show, name] if show == "show" => name,
        [first, ..] => {
            let text = format!("one entity at a time: write 'entities {first}', or 'entities' for all");
            return Err(Error::Usage(text));
        }
    };
    let clock = context.clock.clone();
    let names = |entity: &Entity| vec![entity.id.name.clone()];
    let path = format!("/v1/entities/{}", encode(name));
    context.show(&path, Some(names), |entity, screen| show(entity, &clock, screen)).await
}

/// The screen of all.
fn list(all: &Entities, screen: &mut Screen<'_>) -> Result<(), Error> {
    let mut table = Table::new(&["KIND", "NAME", "NETNS", ">PIDS", "IPS", "FROM"]);
    for entity in &all.entities {
        let style = if entity.id.kind == Kind::Unknown { Style::Warn } else { Style::Plain };
        let mut from = joined(&entity.sources);
        if entity.provisional {
            from.push_str(" (may change)");
        }
        // What lives in the node's own namespace has processes there, but nobody counts them apart.
        let (netns, pids) = match entity.host_network {
            true => ("host".to_owned(), "-".to_owned()),
            false => (entity.id.netns.to_string(), entity.processes.to_string()),
        };
        table.row([
            Line::new().styled(style, entity.id.kind.as_str()),
            entity.id.name.as_str().into(),
            netns.into(),
            pids.into(),
            addresses(&entity.addresses).into(),
            from.into(),
        ]);
    }
    table.render(screen)
}

/// The first few, and how many more there are.
fn addresses(all: &[String]) -> String {
    match all.len().saturating_sub(LISTED) {
        0 => joined(all),
        more => format!("{}, +{more}", joined(&all[..LISTED])),
    }
}

/// The screen of one.
fn show(entity: &Entity, clock: &Clock, screen: &mut Screen<'_>) -> Result<(), Error> {
    let place = if entity.host_network { ", host network" } else { "" };
    let kind = format!("   {}{place}", entity.id.kind.as_str());
    screen.line(&Line::new().styled(Style::Bold, &entity.id.name).plain(&kind))?;
    let leader = entity.leader.map(|pid| match &entity.comm {
        Some(comm) => format!("{comm}[{pid}]"),
        None => pid.to_string(),
    });
    let listed = |words: &[String]| (!words.is_empty()).then(|| words.join(", "));
    let container = entity.container_id.clone().filter(|_| entity.containers.is_empty());
    let since = match clock.since(&entity.since) {
        Some(seconds) => format!("{}, {} ago", clock.coarse(&entity.since), roughly(seconds as f64)),
        None => clock.coarse(&entity.since),
    };
    let rows = [
        ("Description", entity.description.clone()),
        ("Netns", Some(entity.id.netns.to_string())),
        ("Namespace", entity.id.namespace.clone()),
        ("Pod", entity.id.pod.clone()),
        ("Uid", entity.uid.clone()),
        ("IPs", Some(joined(&entity.addresses))),
        ("Processes", (!entity.host_network).then(|| entity.processes.to_string())),
        ("Leader", leader),
        ("Container", container),
        ("Units", listed(&entity.units)),
        ("Cgroup", entity.cgroup.clone()),
        ("Mounts", listed(&entity.mounts)),
        ("From", Some(joined(&entity.sources))),
        ("Since", Some(since)),
    ];
    for (label, value) in rows {
        if let Some(value) = value {
            screen.line(&labelled(label, value.as_str().into()))?;
        }
    }
    block(screen, "Containers", containers(&entity.containers))?;
    block(screen, "Labels", pairs(&entity.labels))?;
    block(screen, "Annotations", pairs(&entity.annotations))?;
    block(screen, "Claims", claims(&entity.claims, clock))?;
    notes(entity, screen)
}

/// What a reader may wonder about.
fn notes(entity: &Entity, screen: &mut Screen<'_>) -> Result<(), Error> {
    if entity.provisional {
        let text = "This name is not final: a container runtime may know a better one in a moment. Until then it has no series.";
        screen.line(&Line::new().pad(2).styled(Style::Warn, text))?;
    }
    if entity.host_network {
        let text = "It shares the node's network namespace: its traffic is counted with the host's, and events name it.";
        screen.line(&Line::new().pad(2).styled(Style::Dim, text))?;
    }
    Ok(())
}

fn labelled(label: &str, text: Line) -> Line {
    Line::new().pad(2).styled(Style::Bold, label).pad(2 + LABEL).join(text)
}

/// Lines with one label before the first of them.
fn block(screen: &mut Screen<'_>, label: &str, mut table: Table) -> Result<(), Error> {
    table = table.indented(0);
    let mut look = screen.look();
    look.headers = false;
    if let Some(size) = &mut look.size {
        size.columns = size.columns.saturating_sub(2 + LABEL);
    }
    for (at, line) in table.lines(look).into_iter().enumerate() {
        screen.line(&labelled(if at == 0 { label } else { "" }, line))?;
    }
    Ok(())
}

fn containers(all: &[ContainerInfo]) -> Table {
    let mut table = Table::new(&["", "", "", ""]);
    for container in all {
        let name = if container.sandbox { "sandbox" } else { container.name.as_str() };
        let name = Line::new().styled(if container.sandbox { Style::Dim } else { Style::Plain }, name);
        let pid = container.pid.map(|pid| format!("pid {pid}"));
        let short = container
            .id
            .char_indices()
            .nth(SHORT)
            .map_or(container.id.as_str(), |(end, _)| &container.id[..end]);
        table.row([
            name,
            short.into(),
            pid.unwrap_or_else(|| "-".into()).into(),
            container.image.as_str().into(),
        ]);
    }
    table
}

fn pairs(all: &BTreeMap<String, String>) -> Table {
    let mut table = Table::new(&[""]);
    for (name, value) in all {
        table.row([Line::from(format!("{name}={value}"))]);
    }
    table
}

fn claims(all: &[Claim], clock: &Clock) -> Table {
    let mut table = Table::new(&["", "", ""]);
    for claim in all {
        let since = clock.since(&claim.since).map(|seconds| format!("since {}", span(seconds)));
        let changed = clock.since(&claim.changed).filter(|_| claim.changed != claim.since);
        let changed = changed.map(|seconds| format!(", changed {} ago", roughly(seconds as f64)));
        let times = since.unwrap_or_default() + &changed.unwrap_or_default();
        table.row([claim.source.as_str().into(), claim.says.as_str().into(), times.into()]);
    }
    table
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
  Since       2026-11-19 12:01:03, 23 h ago
";
        assert_eq!(text, expected);
    }

    fn pod() -> Entity {
        let mut pod = entity(Kind::Pod, "kube-system/coredns-abc", 7);
        pod.id.namespace = Some("kube-system".into());
        pod.id.pod = Some("coredns-abc".into());
        pod.uid = Some("8f1c".into());
        pod.sources = vec!["containerd".into()];
        let container = |id: &str, name: &str, pid, sandbox| ContainerInfo {
            id: id.repeat(32),
            name: name.into(),
            image: if sandbox { String::new() } else { "registry/coredns:1.11".into() },
            pid,
            sandbox,
        };
        pod.containers =
            vec![container("5d", "", Some(800), true), container("a1", "dns\x1b[2J", None, false)];
        pod.labels =
            [("app".to_owned(), "dns".to_owned()), ("evil".to_owned(), "a\nb\u{202e}".to_owned())].into();
        pod.annotations = [("sum".to_owned(), "1".to_owned())].into();
        let claim = |says: &str, since: &str, changed: &str| Claim {
            source: "containerd".into(),
            says: says.into(),
            since: since.into(),
            changed: changed.into(),
        };
        pod.claims = vec![
            claim("sandbox of kube-system/coredns-abc", "2026-11-17T12:00:00Z", "2026-11-20T11:58:00Z"),
            claim("container dns of it", "2026-11-20T11:58:00Z", "2026-11-20T11:58:00Z"),
        ];
        pod
    }

    #[test]
    fn everything_known_of_a_pod() {
        let clock = Clock::fixed(TimeZone::UTC, date(2026, 11, 20));
        let mut pod = pod();
        pod.provisional = true;
        let text = rendered(PLAIN, |screen| show(&pod, &clock, screen));
        let expected = "\
kube-system/coredns-abc   pod
  Netns       7
  Namespace   kube-system
  Pod         coredns-abc
  Uid         8f1c
  IPs         192.0.2.2, fd00::2
  Processes   4
  Leader      sh\\u{1b}[31m[812]
  From        containerd
  Since       2026-11-19 12:01:03, 23 h ago
  Containers  sandbox       5d5d5d5d5d5d  pid 800
              dns\\u{1b}[2J  a1a1a1a1a1a1  -        registry/coredns:1.11
  Labels      app=dns
              evil=a\\nb\\u{202e}
  Annotations sum=1
  Claims      containerd  sandbox of kube-system/coredns-abc  since 3d, changed 2 min ago
              containerd  container dns of it                 since 2m
  This name is not final: a container runtime may know a better one in a moment. Until then it has no series.
";
        assert_eq!(text, expected);
    }

    #[test]
    fn what_lives_in_the_node_s_namespace_is_marked() {
        let proxy = Entity { host_network: true, ..pod() };
        let all = Entities { generation: 1, entities: vec![proxy.clone()] };
        let text = rendered(PLAIN, |screen| list(&all, screen));
        assert!(
            text.ends_with("\npod   kube-system/coredns-abc  host      -  192.0.2.2, fd00::2  containerd\n"),
            "{text}"
        );
        let text = rendered(PLAIN, |screen| show(&proxy, &Clock::local(), screen));
        assert!(text.starts_with("kube-system/coredns-abc   pod, host network\n"), "{text}");
        assert!(text.contains("counted with the host's") && !text.contains("Processes"), "{text}");
    }

    #[test]
    fn a_long_list_of_addresses_is_counted() {
        let words: Vec<String> = (1..=6).map(|n| n.to_string()).collect();
        assert_eq!((addresses(&words).as_str(), addresses(&words[..3]).as_str()), ("1, 2, 3, +3", "1, 2, 3"));
    }

    #[test]
    fn show_is_a_word_before_a_name_and_else_a_name() {
        let refusal = r#"{"error":{"code":"no_such_entity","message":"no entity"}}"#;
        for (line, asked) in [
            ("entities show", "show"),
            ("entities show show", "show"),
            ("entities show blue", "blue"),
            ("entities blue", "blue"),
        ] {
            let daemon = Daemon::answering(json(404, refusal));
            ctl(&daemon, line);
            assert!(daemon.request().starts_with(&format!("GET /v1/entities/{asked} ")), "{line}");
        }
        let outcome = ctl(&Daemon::silent(), "entities blue red");
        assert_eq!(outcome.code, 2);
        assert!(outcome.err.contains("one entity at a time"), "{}", outcome.err);
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
