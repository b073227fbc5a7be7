//! Shorthand for probes that show single counters: a table of facts, from which the families of all three generations of
//! names are made at compile time.

use crate::declare::{Family, MAX_COLUMNS, Points, TableDecl, column};

/// A counter or gauge of the kernel and the names under which it is shown.
#[derive(Clone, Copy)]
pub struct Fact {
    /// Its column; the IPv4 one if there are two.
    v4: &'static str,
    /// The column of the same number for IPv6, or empty.
    v6: &'static str,
    native: &'static str,
    kubeskoop: &'static str,
    inspector: &'static str,
    help: &'static str,
    core: bool,
    alarm: &'static str,
    decimals: u8,
}

/// A fact with a native name only.
pub const fn fact(key: &'static str, native: &'static str, help: &'static str) -> Fact {
    Fact { v4: key, v6: "", native, kubeskoop: "", inspector: "", help, core: false, alarm: "", decimals: 0 }
}

impl Fact {
    /// Adds the column for IPv6: the native metric gets a label `family`. The older ones stay IPv4 only, as they were.
    pub const fn v6(self, key: &'static str) -> Fact {
        Fact { v6: key, ..self }
    }
    /// Adds KubeSkoop's and the inspector's name.
    pub const fn old(self, kubeskoop: &'static str, inspector: &'static str) -> Fact {
        Fact { kubeskoop, inspector, ..self }
    }
    /// Puts the native metric into the default set.
    pub const fn core(self) -> Fact {
        Fact { core: true, ..self }
    }
    /// The kernel counts in the unit of the native name divided by ten to that power: 3 for milliseconds that are shown
    /// as seconds. The older names show the kernel's numbers as they are.
    pub const fn decimals(self, decimals: u8) -> Fact {
        Fact { decimals, ..self }
    }
    /// Its sentence, for families that are not made of the table of facts.
    pub const fn help(self) -> &'static str {
        self.help
    }
    /// Says what growth means.
    pub const fn alarm(self, alarm: &'static str) -> Fact {
        Fact { alarm, ..self }
    }
}

/// The columns of a fact with their constant labels.
pub type Cells = [(&'static str, u16); 2];

/// The columns of facts; kept in a `static` of its own, since families refer to it.
pub const fn cells<const N: usize>(table: &'static TableDecl, facts: &[Fact; N]) -> [Cells; N] {
    let mut all = [[("", 0); 2]; N];
    let mut i = 0;
    while i < N {
        let fact = &facts[i];
        all[i] = if fact.v6.is_empty() {
            [("", column(table, fact.v4)); 2]
        } else {
            [("family=\"ipv4\"", column(table, fact.v4)), ("family=\"ipv6\"", column(table, fact.v6))]
        };
        i += 1;
    }
    all
}

static SINGLE: [[(&str, u16); 1]; MAX_COLUMNS] = {
    let mut all = [[("", 0)]; MAX_COLUMNS];
    let mut i = 0;
    while i < MAX_COLUMNS {
        all[i] = [("", i as u16)];
        i += 1;
    }
    all
};

/// One column, without a label.
pub const fn one(table: &'static TableDecl, key: &str) -> Points {
    Points::Cells(&SINGLE[column(table, key) as usize])
}

/// The native families of facts.
pub const fn native<const N: usize>(
    table: &'static TableDecl,
    facts: &[Fact; N],
    cells: &'static [Cells; N],
) -> [Family; N] {
    let mut all = [Family::native("", "", table, Points::Cells(&[])); N];
    let mut i = 0;
    while i < N {
        let fact = &facts[i];
        let points = if fact.v6.is_empty() { one(table, fact.v4) } else { Points::Cells(&cells[i]) };
        let family = Family::native(fact.native, fact.help, table, points).alarm(fact.alarm);
        let family = family.decimals(fact.decimals);
        all[i] = if fact.core { family.core() } else { family };
        i += 1;
    }
    all
}

/// The families of facts under KubeSkoop's names. Every fact must have one.
pub const fn kubeskoop<const N: usize>(table: &'static TableDecl, facts: &[Fact; N]) -> [Family; N] {
    let mut all = [Family::kubeskoop("", "", table, Points::Cells(&[])); N];
    let mut i = 0;
    while i < N {
        let fact = &facts[i];
        assert!(!fact.kubeskoop.is_empty(), "a fact without KubeSkoop's name");
        all[i] = Family::kubeskoop(fact.kubeskoop, fact.help, table, one(table, fact.v4)).alarm(fact.alarm);
        i += 1;
    }
    all
}

/// The families of facts under the inspector's names. Every fact must have one.
pub const fn inspector<const N: usize>(table: &'static TableDecl, facts: &[Fact; N]) -> [Family; N] {
    let mut all = [Family::inspector("", "", table, Points::Cells(&[])); N];
    let mut i = 0;
    while i < N {
        let fact = &facts[i];
        assert!(!fact.inspector.is_empty(), "a fact without the inspector's name");
        all[i] = Family::inspector(fact.inspector, fact.help, table, one(table, fact.v4)).alarm(fact.alarm);
        i += 1;
    }
    all
}
