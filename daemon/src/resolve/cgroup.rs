//! What a cgroup path says about the process in it. Understands v1, v2 and hybrid layouts, the systemd and the cgroupfs
//! drivers of the container runtimes, and systemd's escapes.

/// What was found in a cgroup path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CgroupOwner {
    /// A container, by its 64-digit id.
    Container(String),
    /// A systemd unit: `nginx.service`.
    Unit(String),
    /// A machine: `machinectl`'s or nspawn's.
    Machine(String),
}

/// Picks the path that tells most from the lines of `/proc/<pid>/cgroup` (cgroups(7)): the unified one, else that of
/// systemd's own hierarchy, else that of a controller which container runtimes always set.
pub fn path(text: &str) -> Option<&str> {
    const HIERARCHIES: [&str; 7] = ["", "name=systemd", "memory", "pids", "cpu,cpuacct", "cpu", "devices"];
    HIERARCHIES.iter().find_map(|wanted| {
        text.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
            (controllers == *wanted && path.starts_with('/') && path != "/").then_some(path)
        })
    })
}

/// Names the owner of a cgroup: the innermost container, machine or unit on its path. Login sessions and user managers
/// are nobody's namespace.
pub fn owner(path: &str) -> Option<CgroupOwner> {
    let parts = || path.split('/').filter(|part| !part.is_empty());
    if let Some(id) = parts().rev().find_map(container_id) {
        return Some(CgroupOwner::Container(id));
    }
    if let Some(name) = parts().find_map(machine) {
        return Some(CgroupOwner::Machine(name));
    }
    parts().rev().find_map(unit).map(CgroupOwner::Unit)
}

/// `cri-containerd-<id>.scope`, `docker-<id>.scope`, `<slice>:cri-containerd:<id>`, or just the id.
fn container_id(part: &str) -> Option<String> {
    let part = part.strip_suffix(".scope").unwrap_or(part);
    let tail = part.rsplit([':', '-']).next()?;
    (tail.len() == 64 && tail.bytes().all(|b| b.is_ascii_hexdigit())).then(|| tail.to_owned())
}

/// `machine-<name>.scope` of systemd-machined, `systemd-nspawn@<name>.service` of an nspawn without it.
fn machine(part: &str) -> Option<String> {
    let scope = part.strip_prefix("machine-").and_then(|name| name.strip_suffix(".scope"));
    let service = part.strip_prefix("systemd-nspawn@").and_then(|name| name.strip_suffix(".service"));
    scope.or(service).map(unescape)
}

fn unit(part: &str) -> Option<String> {
    let is_unit = part.ends_with(".service") || part.ends_with(".scope");
    let is_login = part.starts_with("session-") || part.starts_with("user@") || part == "init.scope";
    (is_unit && !is_login).then(|| unescape(part))
}

/// Undoes systemd's `\x2d` (systemd.unit(5), "String Escaping").
fn unescape(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(at) = rest.find("\\x") {
        let code = rest.get(at + 2..at + 4).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        out.push_str(&rest[..at]);
        match code.filter(u8::is_ascii) {
            Some(byte) => {
                out.push(char::from(byte));
                rest = &rest[at + 4..];
            }
            None => {
                out.push_str("\\x");
                rest = &rest[at + 2..];
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn the_unified_path_wins_unless_it_says_nothing() {
        assert_eq!(path("0::/system.slice/a.service\n"), Some("/system.slice/a.service"));
        assert_eq!(path("12:memory:/docker/x\n1:name=systemd:/a.service\n0::/\n"), Some("/a.service"));
        assert_eq!(path("12:memory:/docker/x\n1:name=systemd:/\n0::/\n"), Some("/docker/x"));
        assert_eq!(path("0::/\n"), None);
        assert_eq!(path("garbage"), None);
    }

    #[test]
    fn containers_of_every_runtime_and_driver() {
        for part in [
            format!(
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-pod1.slice/cri-containerd-{ID}.scope"
            ),
            format!("/kubepods/besteffort/pod1/{ID}"),
            format!("/system.slice/docker-{ID}.scope"),
            format!("/docker/{ID}/init.scope"),
            format!("/machine.slice/libpod-{ID}.scope/container"),
            format!("/kubepods-pod1.slice:cri-containerd:{ID}"),
            format!("/kubepods.slice/crio-{ID}.scope"),
        ] {
            assert_eq!(owner(&part), Some(CgroupOwner::Container(ID.into())), "{part}");
        }
    }

    #[test]
    fn units_machines_and_login_sessions() {
        assert_eq!(owner("/system.slice/nginx.service"), Some(CgroupOwner::Unit("nginx.service".into())));
        assert_eq!(
            owner("/system.slice/system-getty.slice/getty@tty1.service"),
            Some(CgroupOwner::Unit("getty@tty1.service".into()))
        );
        assert_eq!(
            owner("/machine.slice/machine-my\\x2dbox.scope/payload"),
            Some(CgroupOwner::Machine("my-box".into()))
        );
        assert_eq!(owner("/user.slice/user-0.slice/session-3.scope"), None);
        assert_eq!(owner("/user.slice/user-1000.slice/user@1000.service/app.slice"), None);
        assert_eq!(owner("/init.scope"), None);
    }

    #[test]
    fn a_hostile_path_is_only_text() {
        assert_eq!(owner("/a\\x.service"), Some(CgroupOwner::Unit("a\\x.service".into())));
        assert_eq!(owner("/a\\xff\\x4.service"), Some(CgroupOwner::Unit("a\\xff\\x4.service".into())));
        assert_eq!(owner("/\\xé.service"), Some(CgroupOwner::Unit("\\xé.service".into())));
    }
}
