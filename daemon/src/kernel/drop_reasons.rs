//! Names of the reasons for which the kernel drops packets and sends resets. They are numbered anew with almost every
//! kernel, so they come from the running one.

use super::features::{EnumNames, Features};
use std::borrow::Cow;

/// Enumerations that [`Features::load`] must be asked for.
pub const ENUMS: &[&str] =
    &["skb_drop_reason", "skb_drop_reason_subsys", "sk_rst_reason", SUBSYSTEM_ENUMS[0], SUBSYSTEM_ENUMS[1]];

/// Reasons of subsystems, with the subsystem's number in their upper half; known where these are built into the kernel.
const SUBSYSTEM_ENUMS: [&str; 2] = ["ovs_drop_reason", "mac80211_drop_reason"];

const PREFIX: &str = "SKB_DROP_REASON_";

/// Names of the packet drop reasons.
#[derive(Clone, Debug, Default)]
pub struct DropReasons {
    core: EnumNames,
    subsystems: EnumNames,
    of_subsystems: [EnumNames; SUBSYSTEM_ENUMS.len()],
}

impl DropReasons {
    /// Those of the running kernel.
    pub fn new(features: &Features) -> DropReasons {
        DropReasons {
            core: features.names("skb_drop_reason"),
            subsystems: features.names("skb_drop_reason_subsys"),
            of_subsystems: SUBSYSTEM_ENUMS.map(|name| features.names(name)),
        }
    }

    /// Name of a reason without its prefix. Subsystems number their own reasons, mostly in modules, whose types are not
    /// read: those get the subsystem's name and the number. What has no name at all stays a number.
    pub fn name(&self, reason: u32) -> Cow<'_, str> {
        let (subsystem, number) = (reason >> 16, reason & 0xffff);
        if subsystem == 0 {
            return match self.core.get(reason) {
                Some(name) => name.strip_prefix(PREFIX).unwrap_or(name).into(),
                None => reason.to_string().into(),
            };
        }
        if let Some(name) = self.of_subsystems.iter().find_map(|names| names.get(reason)) {
            return name.into();
        }
        match self.subsystems.get(subsystem) {
            Some(name) => {
                format!("{}_{number}", name.strip_prefix("SKB_DROP_REASON_SUBSYS_").unwrap_or(name)).into()
            }
            None => format!("subsys_{subsystem}_{number}").into(),
        }
    }

    /// Number of a reason of the kernel's core, by its name without the prefix.
    pub fn number(&self, name: &str) -> Option<u32> {
        let same = |full: &str| full.strip_prefix(PREFIX).unwrap_or(full) == name;
        self.core.iter().find(|(_, full)| same(full)).map(|(number, _)| number)
    }

    /// Reasons for drops of the kernel's core: their numbers, and their names without the prefix.
    pub fn numbered(&self) -> impl Iterator<Item = (u32, &str)> {
        // Bounds of the enumeration, and the part of a number that tells the subsystem.
        const NONE: [&str; 2] = ["MAX", "SUBSYS_MASK"];
        let all = self.core.iter().filter_map(|(number, full)| Some((number, full.strip_prefix(PREFIX)?)));
        all.filter(|(_, name)| !NONE.contains(name))
    }

    /// Whether the running kernel does not tell reasons.
    pub fn is_empty(&self) -> bool {
        self.core.is_empty()
    }
}

/// Names of the reasons for which the kernel sends TCP resets (`enum sk_rst_reason`).
#[derive(Clone, Debug, Default)]
pub struct ResetReasons(EnumNames);

impl ResetReasons {
    /// Those of the running kernel.
    pub fn new(features: &Features) -> ResetReasons {
        ResetReasons(features.names("sk_rst_reason"))
    }

    /// Name of a reason without its prefix; `None` if the kernel does not tell reasons.
    pub fn name(&self, reason: u32) -> Option<Cow<'_, str>> {
        (!self.0.is_empty()).then(|| match self.0.get(reason) {
            Some(name) => name.strip_prefix("SK_RST_REASON_").unwrap_or(name).into(),
            None => reason.to_string().into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_the_kernel_and_unknown_numbers_stay_readable() {
        let reasons = DropReasons {
            core: EnumNames::from_pairs([(0, "SKB_NOT_DROPPED_YET"), (3, "SKB_DROP_REASON_NO_SOCKET")]),
            subsystems: EnumNames::from_pairs([(2, "SKB_DROP_REASON_SUBSYS_OPENVSWITCH")]),
            of_subsystems: [
                EnumNames::from_pairs([(2 << 16 | 1, "OVS_DROP_LAST_ACTION")]),
                EnumNames::default(),
            ],
        };
        assert_eq!(reasons.name(2 << 16 | 1), "OVS_DROP_LAST_ACTION");
        assert_eq!(reasons.name(3), "NO_SOCKET");
        assert_eq!(reasons.name(0), "SKB_NOT_DROPPED_YET");
        assert_eq!(reasons.name(99), "99");
        assert_eq!(reasons.name(2 << 16 | 7), "OPENVSWITCH_7");
        assert_eq!(reasons.name(9 << 16 | 7), "subsys_9_7");
        assert_eq!(reasons.numbered().collect::<Vec<_>>(), [(3, "NO_SOCKET")]);
        assert_eq!((reasons.number("NO_SOCKET"), reasons.number("SOCKET")), (Some(3), None));
        assert_eq!(DropReasons::default().name(5), "5");
        assert_eq!(ResetReasons::default().name(5), None);
    }
}
