//! The little that is read of an OCI runtime specification (JSON): the file of a container's network namespace.

use serde::Deserialize;
use std::path::PathBuf;

#[derive(Default, Deserialize)]
pub(super) struct Spec {
    #[serde(default)]
    linux: Option<Linux>,
}

#[derive(Default, Deserialize)]
struct Linux {
    #[serde(default)]
    namespaces: Option<Vec<Namespace>>,
}

#[derive(Deserialize)]
struct Namespace {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    path: String,
}

impl Spec {
    /// Reads a specification; nothing if it is none.
    pub(super) fn read(json: &[u8]) -> Option<Spec> {
        serde_json::from_slice(json).ok()
    }

    /// The file that a container's network namespace was taken from. Not one below `/proc`: the number in it may be
    /// another process by now.
    pub(super) fn netns(self) -> Option<PathBuf> {
        let mut all = self.linux?.namespaces?.into_iter();
        let path = all.find(|namespace| namespace.kind == "network")?.path;
        let is_good = path.starts_with('/') && !path.starts_with("/proc/") && !path.contains('\0');
        (is_good && path.len() < 4096).then(|| path.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn netns(json: &str) -> Option<PathBuf> {
        Spec::read(json.as_bytes())?.netns()
    }

    #[test]
    fn the_file_of_the_network_namespace() {
        let with = |network: &str| {
            let rest = r#""process":{"args":["/pause"]},"mounts":[1,{}]"#;
            netns(&format!(
                r#"{{"ociVersion":"1.0",{rest},"linux":{{"namespaces":[{{"type":"pid"}},{network}]}}}}"#
            ))
        };
        let file = with(r#"{"type":"network","path":"/var/run/netns/cni-1"}"#);
        assert_eq!(file, Some("/var/run/netns/cni-1".into()));
        assert_eq!(with(r#"{"type":"network","path":"/proc/77/ns/net"}"#), None);
        assert_eq!(with(r#"{"type":"network"}"#), None, "one of its own");
        assert_eq!(with(r#"{"type":"network","path":"relative"}"#), None);
        assert_eq!(with(r#"{"type":"ipc","path":"/x"}"#), None, "the node's");
    }

    #[test]
    fn what_is_no_specification_tells_nothing() {
        for json in ["", "null", "[]", "{}", r#"{"linux":null}"#, r#"{"linux":{"namespaces":null}}"#, "\u{0}"]
        {
            assert_eq!(netns(json), None, "{json}");
        }
        assert_eq!(netns(&format!("{}{}", "[".repeat(100_000), "]".repeat(100_000))), None);
    }
}
