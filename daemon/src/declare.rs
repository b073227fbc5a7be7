//! What a probe is, as plain static data: tables that sources fill, families that name what is in them, options, events.
//!
//! Three things are kept apart. A *table* is what a source fills, in the kernel's own words. A *family* is one metric
//! name in one generation of names. A *probe* is a list of families and, only if it has hooks, code. Everything that
//! speaks of probes (HELP and TYPE lines, `netskoopctl probes`, `docs/metrics.md`, configuration checks) is rendered
//! from these.

use crate::hooks::Hooks;
use std::ops::RangeInclusive;
use std::time::Duration;

pub mod histogram;

pub use histogram::{Bucket, HISTOGRAM, LATENCY};

/// Whether a value only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows, until its object vanishes.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// One column of a table.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// The kernel's own name, with its section: `Tcp.ActiveOpens`.
    pub key: &'static str,
    /// Whether it only grows.
    pub kind: Kind,
}

/// A column that only grows.
pub const fn counter(key: &'static str) -> Column {
    Column { key, kind: Kind::Counter }
}

/// A column that goes up and down.
pub const fn gauge(key: &'static str) -> Column {
    Column { key, kind: Kind::Gauge }
}

/// What a source fills. A pass reads each table once, however many probes show it.
#[derive(Debug)]
pub struct TableDecl {
    /// Unique name.
    pub name: &'static str,
    /// Names of the row keys (`device`, `reason`); empty if a subject has one row.
    pub keys: &'static [&'static str],
    /// The columns. At most [`MAX_COLUMNS`].
    pub columns: &'static [Column],
    /// Whether its rows belong to the node and not to one namespace.
    pub node: bool,
}

/// Columns of a table at most: the set of wanted ones is kept in [`ColumnSet`].
pub const MAX_COLUMNS: usize = 256;

/// Which columns somebody shows; the others are not parsed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ColumnSet([u64; MAX_COLUMNS / 64]);

impl ColumnSet {
    /// Adds a column.
    pub fn insert(&mut self, column: u16) {
        self.0[usize::from(column) / 64] |= 1 << (column % 64);
    }
    /// Whether the column is in the set.
    pub fn contains(&self, column: u16) -> bool {
        self.0[usize::from(column) / 64] >> (column % 64) & 1 == 1
    }
    /// Whether nothing is in the set.
    pub fn is_empty(&self) -> bool {
        self.0 == [0; MAX_COLUMNS / 64]
    }
    /// Adds all columns of `other`.
    pub fn union(&mut self, other: &ColumnSet) {
        for (a, b) in self.0.iter_mut().zip(other.0) {
            *a |= b;
        }
    }
    /// Whether every column of `other` is in this set.
    pub fn covers(&self, other: &ColumnSet) -> bool {
        self.0.iter().zip(other.0).all(|(a, b)| b & !a == 0)
    }
}

/// Generation of metric names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Names {
    /// Ours: `netskoop_tcp_active_opens_total{kind,name,...}`.
    Netskoop,
    /// KubeSkoop's: `kubeskoop_tcp_activeopens{k8s_node,k8s_namespace,k8s_pod}`.
    Kubeskoop,
    /// The first ACK Net Exporter's: `inspector_pod_tcpactiveopens{namespace,pod,node,netns}`.
    Inspector,
}

impl Names {
    /// All generations, the native one first.
    pub const ALL: [Names; 3] = [Names::Netskoop, Names::Kubeskoop, Names::Inspector];

    /// The word in `?names=` and in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Names::Netskoop => "netskoop",
            Names::Kubeskoop => "kubeskoop",
            Names::Inspector => "inspector",
        }
    }
}

/// How cells become points of a family.
#[derive(Clone, Copy, Debug)]
pub enum Points {
    /// One point per pair of constant label text (`state="established"`, or empty) and column.
    Cells(&'static [(&'static str, u16)]),
    /// One point: the sum of several columns (IPv4 and IPv6 parts of one number).
    Sum(&'static [u16]),
    /// A histogram of a table whose columns begin with [`HISTOGRAM`]: these buckets, the one of all values, sum and count.
    Histogram(&'static [Bucket]),
    /// The slots of such a table one by one, with their numbers as `le`, as the older systems showed histograms.
    Slots,
}

/// What tells a point from the others of its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Behind the name of the family: `_bucket`, mostly nothing.
    pub suffix: &'static str,
    /// Constant label text.
    pub label: &'static str,
    /// Whether it is a number of things, which has no places behind the point whatever the family's unit is.
    pub is_count: bool,
}

const PLAIN: Shape = Shape { suffix: "", label: "", is_count: false };

impl Points {
    /// The columns that are shown.
    pub fn columns(&self) -> impl Iterator<Item = u16> + Clone + '_ {
        const SLOTS: u16 = HISTOGRAM.len() as u16;
        let (cells, sum, slots): (&[(&str, u16)], &[u16], _) = match self {
            Points::Cells(cells) => (cells, &[], 0..0),
            Points::Sum(columns) => (&[], columns, 0..0),
            Points::Histogram(_) => (&[], &[], 0..SLOTS),
            Points::Slots => (&[], &[], 1..SLOTS),
        };
        cells.iter().map(|(_, column)| *column).chain(sum.iter().copied()).chain(slots)
    }

    /// Points that a row has at most.
    pub fn count(&self) -> usize {
        match self {
            Points::Cells(cells) => cells.len(),
            Points::Sum(_) => 1,
            Points::Histogram(buckets) => buckets.len() + 3,
            Points::Slots => histogram::SLOTS,
        }
    }

    /// Names of its constant labels; one may come several times.
    pub fn labels(&self) -> impl Iterator<Item = &'static str> + '_ {
        (0..self.count()).filter_map(|cell| Some(self.shape(cell).label.split_once('=')?.0))
    }

    /// The point with this number among those of a row.
    pub fn shape(&self, cell: usize) -> Shape {
        match self {
            Points::Cells(cells) => Shape { label: cells.get(cell).map_or("", |(label, _)| *label), ..PLAIN },
            Points::Sum(_) => PLAIN,
            Points::Histogram(buckets) => histogram::shape(buckets, cell),
            Points::Slots => Shape { label: histogram::slot_label(cell), is_count: true, ..PLAIN },
        }
    }
}

/// Rows a family shows.
#[derive(Clone, Copy, Debug)]
pub struct Only {
    /// Index of the row key that is looked at.
    pub key: usize,
    /// The values meant.
    pub values: &'static [&'static str],
    /// True: rows with one of the values. False: all other rows.
    pub include: bool,
}

/// Which of a table's subjects a family has a series for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The subject of the row: a namespace, or the node for a node-wide table.
    Own,
    /// The value of a node-wide table, repeated under every namespace as the older systems did.
    Repeat,
    /// Only the host's namespace, as the older systems did.
    HostOnly,
}

/// One metric name in one generation of names. A metric whose values are in several tables is several families that
/// follow each other in one probe; the first one's sentence is its HELP.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// Generation it belongs to.
    pub names: Names,
    /// Full metric name.
    pub name: &'static str,
    /// A sentence: what it counts, its unit, where it comes from.
    pub help: &'static str,
    /// Where its values are.
    pub table: &'static TableDecl,
    /// Which of them, and how.
    pub points: Points,
    /// Row keys that are shown: label name, index in the table's keys.
    pub keys: &'static [(&'static str, usize)],
    /// Rows that are shown, if not all.
    pub only: Option<Only>,
    /// Adds up the rows of a subject; always set where a row key is not shown.
    pub fold: bool,
    /// Where numbers would be added up the largest one is taken instead: sums of it mean nothing.
    pub largest: bool,
    /// Subjects it has series for.
    pub scope: Scope,
    /// Whether the default set (`metrics.set = "core"`) shows it.
    pub core: bool,
    /// A few words if growth means trouble; shown by `netskoopctl metrics`.
    pub alarm: &'static str,
    /// Name of a boolean option of the probe that must be on.
    pub option: Option<&'static str>,
    /// Name of a boolean option of the probe that must be off: with it the same name shows something finer.
    pub unless: Option<&'static str>,
    /// Name of another probe that must be on: its source is not to work for this one alone.
    pub with: Option<&'static str>,
    /// Places of the table's numbers that stand behind the point: 3 if it has milliseconds and seconds are shown.
    pub decimals: u8,
}

impl Family {
    /// A family of the native generation with one value per subject.
    pub const fn native(
        name: &'static str,
        help: &'static str,
        table: &'static TableDecl,
        points: Points,
    ) -> Family {
        Family {
            names: Names::Netskoop,
            name,
            help,
            table,
            points,
            keys: &[],
            only: None,
            fold: false,
            largest: false,
            scope: Scope::Own,
            core: false,
            alarm: "",
            option: None,
            unless: None,
            with: None,
            decimals: 0,
        }
    }
    /// A KubeSkoop name. Older generations have no core set: they show what the old systems showed.
    pub const fn kubeskoop(
        name: &'static str,
        help: &'static str,
        table: &'static TableDecl,
        points: Points,
    ) -> Family {
        Family { names: Names::Kubeskoop, core: true, ..Family::native(name, help, table, points) }
    }
    /// An `inspector` name.
    pub const fn inspector(
        name: &'static str,
        help: &'static str,
        table: &'static TableDecl,
        points: Points,
    ) -> Family {
        Family { names: Names::Inspector, core: true, ..Family::native(name, help, table, points) }
    }
    /// Puts it into the default set.
    pub const fn core(self) -> Family {
        Family { core: true, ..self }
    }
    /// Says what growth means.
    pub const fn alarm(self, alarm: &'static str) -> Family {
        Family { alarm, ..self }
    }
    /// Shows row keys as labels.
    pub const fn keys(self, keys: &'static [(&'static str, usize)]) -> Family {
        Family { keys, ..self }
    }
    /// Adds up rows.
    pub const fn fold(self) -> Family {
        Family { fold: true, ..self }
    }
    /// Takes the largest of several numbers instead of their sum.
    pub const fn largest(self) -> Family {
        Family { largest: true, ..self }
    }
    /// Shows only some rows.
    pub const fn only(self, only: Only) -> Family {
        Family { only: Some(only), ..self }
    }
    /// Sets the subjects it has series for.
    pub const fn scope(self, scope: Scope) -> Family {
        Family { scope, ..self }
    }
    /// Shows it only when another probe is on.
    pub const fn with(self, probe: &'static str) -> Family {
        Family { with: Some(probe), ..self }
    }
    /// Shows it only when a boolean option of the probe is on.
    pub const fn option(self, option: &'static str) -> Family {
        Family { option: Some(option), ..self }
    }
    /// Shows it only while a boolean option of the probe is off.
    pub const fn unless(self, option: &'static str) -> Family {
        Family { unless: Some(option), ..self }
    }
    /// So many places of the table's numbers stand behind the point: 3 if it has milliseconds and seconds are shown.
    pub const fn decimals(self, decimals: u8) -> Family {
        assert!(decimals <= 18, "no number has so many places");
        Family { decimals, ..self }
    }
    /// Two numbers made one.
    pub fn add(&self, a: u64, b: u64) -> u64 {
        if self.largest { a.max(b) } else { a.wrapping_add(b) }
    }
    /// Counter or gauge: that of its first column.
    pub fn kind(&self) -> Kind {
        let first = self.points.columns().next().map_or(0, usize::from);
        self.table.columns[first].kind
    }
    /// The type in the words of the text format.
    pub fn type_name(&self) -> &'static str {
        match (self.points, self.kind()) {
            (Points::Histogram(_), _) => "histogram",
            (_, Kind::Counter) => "counter",
            (_, Kind::Gauge) => "gauge",
        }
    }
}

/// Overhead class of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cost {
    /// Leave it on everywhere.
    Low,
    /// Fine on most nodes.
    Medium,
    /// For the time of an investigation.
    High,
}

impl Cost {
    /// The word shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Cost::Low => "low",
            Cost::Medium => "medium",
            Cost::High => "high",
        }
    }
}

/// Type, default and range of an option.
#[derive(Clone, Copy, Debug)]
pub enum OptionType {
    /// Yes or no.
    Bool {
        /// Default.
        default: bool,
    },
    /// A whole number.
    Integer {
        /// Default.
        default: u64,
        /// Smallest value allowed.
        min: u64,
        /// Largest value allowed.
        max: u64,
    },
    /// A length of time, written like `100ms`.
    Duration {
        /// Default.
        default: Duration,
        /// Shortest one allowed.
        min: Duration,
        /// Longest one allowed.
        max: Duration,
    },
    /// Words; the check says what one may be.
    List {
        /// Default.
        default: &'static [&'static str],
        /// At most so many.
        max: usize,
        /// What a word is, for the error message: `an interface name or a pattern with *`.
        what: &'static str,
        /// Whether a word is one.
        check: fn(&str) -> bool,
    },
}

/// Whether a word may name interfaces: a name as the kernel allows it, or a pattern with `*`.
pub fn is_interface_pattern(word: &str) -> bool {
    !word.is_empty() && word.len() <= 15 && !word.contains(['/', ':']) && !word.contains(char::is_whitespace)
}

/// Whether a name fits a pattern in which `*` stands for any bytes. It takes no more steps than the product of their lengths,
/// however many `*` there are.
pub fn matches_pattern(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut read) = (0, 0);
    // Behind the last `*`, and how much of the name that one stands for: all before it has found its place.
    let mut star: Option<(usize, usize)> = None;
    while read < name.len() {
        if pattern.get(at) == Some(&b'*') {
            at += 1;
            star = Some((at, read));
        } else if pattern.get(at) == Some(&name[read]) {
            (at, read) = (at + 1, read + 1);
        } else if let Some((behind, until)) = star {
            (at, read) = (behind, until + 1);
            star = Some((behind, until + 1));
        } else {
            return false;
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

/// An option of a probe: a key under `[probes.<name>]`.
#[derive(Clone, Copy, Debug)]
pub struct OptionDecl {
    /// The key.
    pub name: &'static str,
    /// Its type.
    pub kind: OptionType,
    /// A sentence.
    pub help: &'static str,
}

impl OptionDecl {
    /// Stacks for the events of a probe with hooks.
    pub const STACK: OptionDecl = OptionDecl {
        name: "stack",
        kind: OptionType::Bool { default: false },
        help: "Adds the kernel stack to each event, which costs several microseconds each.",
    };

    /// From when on something that takes long is an event.
    pub const fn slow(default: Duration, within: RangeInclusive<Duration>, help: &'static str) -> OptionDecl {
        let kind = OptionType::Duration { default, min: *within.start(), max: *within.end() };
        OptionDecl { name: "slow", kind, help }
    }
}

/// A type of event that a probe sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventDecl {
    /// Upper-case name.
    pub name: &'static str,
    /// Older names that filters accept.
    pub aliases: &'static [&'static str],
    /// Names of its fields.
    pub fields: &'static [&'static str],
    /// A sentence: what happened.
    pub help: &'static str,
}

/// A line of a file with counters that a kernel without the protocol does not write.
#[derive(Clone, Copy, Debug)]
pub struct Section {
    /// Path below procfs.
    pub file: &'static str,
    /// How the line begins.
    pub line: &'static str,
    /// The protocol.
    pub what: &'static str,
}

/// A probe.
#[derive(Debug)]
pub struct Probe {
    /// The one name.
    pub name: &'static str,
    /// Older names that requests and configuration accept.
    pub aliases: &'static [&'static str],
    /// One sentence.
    pub summary: &'static str,
    /// When to use it.
    pub when: &'static str,
    /// What it usually finds.
    pub finds: &'static str,
    /// Overhead class.
    pub cost: Cost,
    /// What it reads, or which hooks it needs, in words.
    pub needs: &'static str,
    /// Whether it is on when nothing says otherwise.
    pub default_on: bool,
    /// What tells whether the kernel has the protocol at all whose numbers it shows; `None` if every kernel has.
    pub section: Option<Section>,
    /// Its options.
    pub options: &'static [OptionDecl],
    /// Its metrics, in slices so that a long list can be made of tables.
    pub families: &'static [&'static [Family]],
    /// Its events.
    pub events: &'static [EventDecl],
    /// Its hooks; `None` if it only shows what sources read from files.
    pub hooks: Option<Hooks>,
}

impl Probe {
    /// All its families.
    pub fn families(&self) -> impl Iterator<Item = &'static Family> {
        self.families.iter().flat_map(|families| families.iter())
    }
}

/// Finds a column at compile time: a misspelt counter does not build.
#[expect(clippy::panic, reason = "it is the compile error of a misspelt column")]
pub const fn column(table: &TableDecl, key: &str) -> u16 {
    let mut i = 0;
    while i < table.columns.len() {
        if same(table.columns[i].key, key) {
            return i as u16;
        }
        i += 1;
    }
    panic!("no such column");
}

const fn same(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len() != b.len() {
        return false;
    }
    let mut i = 0;
    while i < a.len() {
        if a[i] != b[i] {
            return false;
        }
        i += 1;
    }
    true
}
