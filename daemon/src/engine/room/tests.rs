use super::*;
use crate::declare::Points;
use crate::declare::{Column, Cost, TableDecl};
use crate::resolve::directory::Namespace;
use crate::resolve::directory::testing::{build, namespace};
use crate::resolve::identity::Facts;
use crate::table::Table;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

static TABLE: TableDecl = TableDecl {
    name: "t",
    keys: &["device"],
    columns: &[Column { key: "a", kind: Kind::Counter }, Column { key: "b", kind: Kind::Gauge }],
    node: false,
};
static FAMILIES: [Family; 2] = [
    Family::native("netskoop_t_a_total", "", &TABLE, Points::Cells(&[("", 0)])).keys(&[("device", 0)]),
    Family::native("netskoop_t_b", "", &TABLE, Points::Cells(&[("", 1)])).keys(&[("device", 0)]).largest(),
];
static PROBE: Probe = Probe {
    name: "t",
    aliases: &[],
    summary: "",
    when: "",
    finds: "",
    cost: Cost::Low,
    needs: "",
    default_on: true,
    section: None,
    options: &[],
    families: &[&FAMILIES],
    events: &[],
    hooks: None,
};

/// A namespace, which one in its slot it is, and its devices with both numbers.
type Row<'a> = (u32, u64, &'a [(u64, u64)]);

/// A node, the host's namespace first, at one moment; all got new names so often.
fn snapshot(at: Instant, rows: &[Row<'_>], renamed: u64) -> Snapshot {
    static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);
    let facts = |subject: u32| Facts {
        inode: 100 + subject,
        host: subject == 1,
        leader: (subject == 1).then_some(1),
        mounts: vec![format!("n{subject}-{renamed}")],
        ..Facts::default()
    };
    let owner = |(subject, number, _): &Row<'_>| {
        let ns = namespace(*subject, facts(*subject), 100 * renamed + number);
        Arc::new(Namespace { seen: *EPOCH + Duration::from_secs(*number), ..(*ns).clone() })
    };
    let all: Vec<_> = rows.iter().map(owner).collect();
    let mut table = Table::new(&TABLE, 1000);
    for (subject, _, devices) in rows {
        for (number, (a, b)) in devices.iter().enumerate() {
            table
                .row(Subject(*subject), &[format!("d{number}").as_bytes()])
                .unwrap()
                .copy_from_slice(&[*a, *b]);
        }
    }
    Snapshot {
        tables: vec![table],
        wants: vec![],
        directory: Arc::new(build(1, &all, "n")),
        groups: vec![],
        taken: at,
        time: jiff::Timestamp::now(),
        cpu: Duration::ZERO,
        wall: Duration::ZERO,
        reports: vec![],
        late: 0,
    }
}

/// Plans one answer after the other.
struct Rig {
    rooms: Rooms,
    limits: Limits,
    at: Instant,
    /// How often all got new names.
    renamed: u64,
}

impl Rig {
    fn new(total: u64, probe: u64) -> Rig {
        Rig { rooms: Rooms::default(), limits: Limits { total, probe }, at: Instant::now(), renamed: 0 }
    }

    /// Those who are hidden, and the sums of both families.
    fn plan(&mut self, rows: &[Row<'_>]) -> Option<(Vec<u32>, u64, u64)> {
        self.at += Duration::from_secs(1);
        self.plan_of(&snapshot(self.at, rows, self.renamed))
    }

    fn plan_of(&mut self, snapshot: &Snapshot) -> Option<(Vec<u32>, u64, u64)> {
        let chosen = FAMILIES.each_ref().map(|family| Chosen { probe: &PROBE, family, table: 0 });
        let view = View::new(&[Names::Netskoop], true);
        let plan = self.rooms.plan(self.limits, view, snapshot, &chosen, 0);
        let summed = plan.first()?;
        let mut hidden: Vec<u32> = summed.hidden.iter().map(|subject| subject.0).collect();
        hidden.sort_unstable();
        Some((hidden, summed.of(&FAMILIES[0])[0], summed.of(&FAMILIES[1])[0]))
    }
}

const HOST: Row<'static> = (1, 1, &[(1, 1)]);

#[test]
fn nothing_is_added_up_while_there_is_room() {
    let mut rig = Rig::new(100, 6);
    assert_eq!(rig.plan(&[HOST, (2, 2, &[(5, 5)]), (3, 3, &[(6, 6)])]), None);
    assert!(rig.rooms.views.is_empty(), "nothing is remembered");
}

#[test]
fn what_finds_no_room_is_added_up_and_a_gauge_may_be_the_largest() {
    // Two series of the host, two of the sums, two of the first namespace.
    let mut rig = Rig::new(100, 6);
    let plan = rig.plan(&[HOST, (2, 2, &[(5, 5)]), (3, 3, &[(6, 6), (1, 9)]), (4, 4, &[(7, 7)])]);
    assert_eq!(plan, Some((vec![3, 4], 14, 9)));
    // The limit of the whole answer does the same.
    let mut rig = Rig::new(6, 100);
    let plan = rig.plan(&[HOST, (2, 2, &[(5, 5)]), (3, 3, &[(6, 6)]), (4, 4, &[(7, 7)])]);
    assert_eq!(plan, Some((vec![3, 4], 13, 7)));
}

#[test]
fn who_is_added_up_stays_so_and_the_sum_never_falls() {
    let mut rig = Rig::new(100, 6);
    let (b, c): (Row<'_>, Row<'_>) = ((3, 3, &[(6, 6)]), (4, 4, &[(7, 7)]));
    assert_eq!(rig.plan(&[HOST, (2, 2, &[(5, 5)]), b, c]), Some((vec![3, 4], 13, 7)));
    // The shown one goes: nobody moves up.
    assert_eq!(rig.plan(&[HOST, b, c]), Some((vec![3, 4], 13, 7)));
    // A new one takes its room, also in the same slot.
    assert_eq!(rig.plan(&[HOST, (2, 9, &[(8, 8)]), b, c]), Some((vec![3, 4], 13, 7)));
    // One that is not read this time keeps what it had counted, but is nothing now.
    assert_eq!(rig.plan(&[HOST, (3, 3, &[]), c]), Some((vec![3, 4], 13, 7)));
    // One that is gone leaves what it had counted.
    assert_eq!(rig.plan(&[HOST, (4, 4, &[(10, 1)])]), Some((vec![4], 16, 1)));
    // Its slot has a new owner, who finds room. A counter that begins anew goes on.
    assert_eq!(rig.plan(&[HOST, (3, 10, &[(100, 100)]), (4, 4, &[(2, 2)])]), Some((vec![4], 18, 2)));
    assert_eq!(rig.plan(&[HOST]), Some((vec![], 18, ABSENT)));
}

#[test]
fn an_older_snapshot_changes_nothing() {
    let mut rig = Rig::new(100, 3);
    let old = snapshot(rig.at, &[HOST, (2, 2, &[(5, 5)])], 0);
    assert_eq!(rig.plan(&[HOST, (2, 2, &[(9, 9)])]), Some((vec![2], 9, 9)));
    assert_eq!(rig.plan_of(&old), Some((vec![2], 9, 9)));
    assert_eq!(rig.plan(&[HOST, (2, 2, &[(10, 1)])]), Some((vec![2], 10, 1)));
    // Other limits begin anew.
    rig.limits.probe = 50;
    assert_eq!(rig.plan(&[HOST, (2, 2, &[(10, 1)])]), None);
}

/// It is the same namespace, and its counters go on.
#[test]
fn who_is_added_up_and_gets_another_name_is_not_counted_twice() {
    let mut rig = Rig::new(100, 3);
    let b: Row<'_> = (3, 3, &[(6, 6)]);
    assert_eq!(rig.plan(&[HOST, (2, 2, &[(1000, 5)]), b]), Some((vec![2, 3], 1006, 6)));
    rig.renamed += 1;
    assert_eq!(rig.plan(&[HOST, (2, 2, &[(1010, 5)]), b]), Some((vec![2, 3], 1016, 6)));
    // With the name, its source forgets what was counted by devices that are gone. It is not read at once.
    rig.renamed += 1;
    assert_eq!(rig.plan(&[HOST, (2, 2, &[]), b]), Some((vec![2, 3], 1016, 6)));
    assert_eq!(rig.plan(&[HOST, (2, 2, &[(910, 5)]), b]), Some((vec![2, 3], 1016, 6)));
    assert_eq!(rig.plan(&[HOST, (2, 2, &[(915, 5)]), b]), Some((vec![2, 3], 1021, 6)));
    // A counter that begins anew later is another matter.
    assert_eq!(rig.plan(&[HOST, (2, 2, &[(4, 5)]), b]), Some((vec![2, 3], 1025, 6)));
    // So is another namespace in the slot.
    assert_eq!(rig.plan(&[HOST, (2, 4, &[(4, 5)]), b]), Some((vec![2, 3], 1029, 6)));
}
