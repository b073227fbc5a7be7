//! What a cgroup path says about the process in it. Understands v1, v2 and hybrid layouts, the systemd and the cgroupfs
//! drivers of the container runtimes, and systemd's escapes.

use std::sync::Arc;

/// What was found in a cgroup path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CgroupOwner {
    /// A container.
    Container(Containers),
    /// A systemd unit: `nginx.service`.
    Unit(Arc<str>),
    /// A machine: `machinectl`'s or nspawn's.
    Machine(Arc<str>),
}

/// The containers on a cgroup path, by their 64-digit ids.
///
/// Whoever may make cgroups may give them any name: a container that has its own part of the hierarchy, and every user with
/// a manager of his own. So an id below another container's is only believed where the outer one is unknown (podman's pods
/// have a cgroup with an id, too), and one below a user's manager never is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Containers {
    /// The outermost first; never empty.
    ids: Arc<[Arc<str>]>,
    of_user: bool,
}

impl Containers {
    /// What the innermost calls itself.
    pub fn own_id(&self) -> &str {
        self.ids.last().map(|id| &**id).unwrap_or_default()
    }

    /// Ids by which a runtime may know it. The first one that any runtime knows is who it is.
    pub fn known_ids(&self) -> impl Iterator<Item = &Arc<str>> {
        self.ids.iter().filter(|_| !self.of_user)
    }

    /// Whether one of them has this id.
    pub fn has(&self, id: &str) -> bool {
        self.ids.iter().any(|known| **known == *id)
    }
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

/// Names the owner of a cgroup: the containers, else the machine, else the unit on its path. Login sessions and
/// user managers are nobody's namespace.
pub fn owner(path: &str) -> Option<CgroupOwner> {
    // Seen from a cgroup namespace below the root, the way begins upwards.
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != "..").collect();
    let of_user = parts.iter().any(|part| is_user_manager(part));
    let mut ids: Vec<&str> = parts.iter().filter_map(|part| container_id(part)).collect();
    ids.dedup();
    if !ids.is_empty() {
        let ids = ids.into_iter().map(Arc::from).collect();
        return Some(CgroupOwner::Container(Containers { ids, of_user }));
    }
    if let Some(name) = parts.iter().find_map(|part| machine(part)).filter(|_| !of_user) {
        return Some(CgroupOwner::Machine(name.into()));
    }
    unit(&parts).map(|name| CgroupOwner::Unit(name.into()))
}

/// `cri-containerd-<id>.scope`, `docker-<id>.scope`, `<slice>:cri-containerd:<id>`, or just the id. Not the monitor of a
/// container, `crio-conmon-<id>.scope` or `libpod-conmon-<id>.scope`, which lives in the node's own namespace.
fn container_id(part: &str) -> Option<&str> {
    let part = part.strip_suffix(".scope").unwrap_or(part);
    let (before, tail) = part.rsplit_once([':', '-']).unwrap_or(("", part));
    let is_id = tail.len() == 64 && tail.bytes().all(|b| b.is_ascii_hexdigit());
    let is_monitor = before == "conmon" || before.ends_with("-conmon");
    (is_id && !is_monitor).then_some(tail)
}

/// `machine-<name>.scope` of systemd-machined, `systemd-nspawn@<name>.service` of an nspawn without it,
/// `lxc.payload.<name>` of LXC and Incus.
fn machine(part: &str) -> Option<String> {
    let scope = part.strip_prefix("machine-").and_then(|name| name.strip_suffix(".scope"));
    let service = part.strip_prefix("systemd-nspawn@").and_then(|name| name.strip_suffix(".service"));
    let payload = part.strip_prefix("lxc.payload.");
    scope.or(service).or(payload).filter(|name| !name.is_empty()).map(unescape)
}

/// The unit that systemd itself would name: the first part below the slices. What is further down belongs to the unit,
/// also if it looks like one: another manager runs there.
///
/// A unit of a user's manager is `user@1000.service/foo.service`: two users may have a `foo.service`, and so may the node.
fn unit(parts: &[&str]) -> Option<String> {
    let (first, below) = below_slices(parts)?;
    if is_user_manager(first) {
        let (own, _) = below_slices(below)?;
        return is_unit(own).then(|| format!("{first}/{}", unprefixed(own)));
    }
    let is_login = first.starts_with("session-") && first.ends_with(".scope");
    (is_unit(first) && !is_login).then(|| unprefixed(first).to_owned())
}

/// The first part that is no slice, and those below it.
fn below_slices<'a, 'p>(parts: &'a [&'p str]) -> Option<(&'p str, &'a [&'p str])> {
    let at = parts.iter().position(|part| !part.ends_with(".slice"))?;
    Some((parts[at], &parts[at + 1..]))
}

/// `user@1000.service`.
fn is_user_manager(part: &str) -> bool {
    let uid = part.strip_prefix("user@").and_then(|uid| uid.strip_suffix(".service"));
    uid.is_some_and(|uid| !uid.is_empty() && uid.bytes().all(|b| b.is_ascii_digit()))
}

/// Whether a unit that has processes may be called so.
fn is_unit(part: &str) -> bool {
    const KINDS: [&str; 5] = [".service", ".scope", ".socket", ".mount", ".swap"];
    KINDS.iter().any(|kind| part.strip_suffix(kind).is_some_and(|name| !name.is_empty()))
        && part != "init.scope"
}

/// systemd puts `_` before the name of a unit that a cgroup of the kernel's could have, as in `_cpu.service`. Escapes in
/// the name itself stay: they are part of it, as systemctl shows it and D-Bus knows it.
fn unprefixed(part: &str) -> &str {
    part.strip_prefix('_').unwrap_or(part)
}

/// Undoes systemd's `\x2d` (systemd.unit(5), "String Escaping") in the name of a machine.
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
    const OTHER: &str = "f123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn containers(path: &str) -> Containers {
        match owner(path) {
            Some(CgroupOwner::Container(containers)) => containers,
            other => panic!("{path}: {other:?}"),
        }
    }

    fn ids(path: &str) -> (String, Vec<String>) {
        let found = containers(path);
        (found.own_id().to_owned(), found.known_ids().map(ToString::to_string).collect())
    }

    #[test]
    fn an_id_is_believed_only_where_nobody_could_make_it_up() {
        let both = vec![ID.to_owned(), OTHER.to_owned()];
        assert_eq!(ids(&format!("/docker/{ID}/docker-{OTHER}.scope")), (OTHER.into(), both));
        let rootless = format!("/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope");
        assert_eq!(ids(&rootless), (ID.into(), vec![]));
        let machine = "/user.slice/user-1000.slice/user@1000.service/machine-box.scope";
        assert_eq!(owner(machine), Some(CgroupOwner::Unit("user@1000.service/machine-box.scope".into())));
    }

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
            assert_eq!(ids(&part), (ID.into(), vec![ID.into()]), "{part}");
        }
    }

    fn unit(path: &str) -> Option<String> {
        match owner(path) {
            Some(CgroupOwner::Unit(name)) => Some(name.to_string()),
            None => None,
            other => panic!("{path}: {other:?}"),
        }
    }

    #[test]
    fn monitors_of_containers_are_not_containers() {
        for part in ["crio-conmon", "libpod-conmon"] {
            let name = format!("{part}-{ID}.scope");
            assert_eq!(unit(&format!("/machine.slice/{name}")), Some(name));
        }
        assert_eq!(unit("/libpod_parent/conmon"), None);
        let id = (ID.to_owned(), vec![ID.to_owned()]);
        assert_eq!(ids(&format!("/system.slice/web.service/libpod-payload-{ID}")), id);
        assert_eq!(ids(&format!("/system.slice/k3s.service/kubepods/besteffort/pod1/{ID}")), id);
        let rootless =
            format!("/user.slice/user-7.slice/user@7.service/user.slice/libpod-{ID}.scope/container");
        assert_eq!(ids(&rootless), (ID.to_owned(), vec![]));
    }

    #[test]
    fn a_unit_is_what_systemd_takes_for_it() {
        for (path, name) in [
            ("/system.slice/nginx.service", "nginx.service"),
            ("/nginx.service", "nginx.service"),
            ("/system.slice/system-getty.slice/getty@tty1.service", "getty@tty1.service"),
            ("/a.slice/a-b.slice/a-b-c.slice/x.service", "x.service"),
            ("/system.slice/delegated.service/inner.slice/other.service", "delegated.service"),
            ("/system.slice/delegated.service/supervisor", "delegated.service"),
            ("/system.slice/srv-data.mount", "srv-data.mount"),
            ("/system.slice/dbus.socket", "dbus.socket"),
            ("/system.slice/session-manager.service", "session-manager.service"),
            ("/system.slice/run-r0123.scope", "run-r0123.scope"),
            // Names and escapes as systemd has them, or it would not know them.
            ("/system.slice/fsck@dev-disk-by\\x2duuid-A.service", "fsck@dev-disk-by\\x2duuid-A.service"),
            ("/system.slice/_cpu.service", "cpu.service"),
            // From inside a container that shares the node's process ids.
            ("/../../system.slice/nginx.service", "nginx.service"),
            ("/user.slice/user-7.slice/user@7.service/app.slice/x.service", "user@7.service/x.service"),
            ("/user.slice/user-7.slice/user@7.service/x.service", "user@7.service/x.service"),
        ] {
            assert_eq!(unit(path).as_deref(), Some(name), "{path}");
        }
    }

    #[test]
    fn login_sessions_managers_and_foreign_trees_are_nobodys() {
        for path in [
            "/user.slice/user-0.slice/session-3.scope",
            "/user.slice/user-1000.slice/user@1000.service/app.slice",
            "/user.slice/user-1000.slice/user@1000.service/init.scope",
            "/user.slice/user-1000.slice/user@1000.service",
            "/init.scope",
            "/system.slice",
            "/system.slice/.service",
            // Some other manager's, which need not be systemd.
            "/payload/system.slice/nginx.service",
            "/lxc.payload.",
        ] {
            assert_eq!(unit(path), None, "{path}");
        }
    }

    #[test]
    fn machines() {
        for (path, name) in [
            ("/machine.slice/machine-my\\x2dbox.scope/payload/system.slice/nginx.service", "my-box"),
            ("/machine.slice/machine-qemu\\x2d1\\x2dvm.scope/libvirt/emulator", "qemu-1-vm"),
            ("/machine.slice/systemd-nspawn@my-box.service/payload/init.scope", "my-box"),
            ("/lxc.payload.box/system.slice/nginx.service", "box"),
        ] {
            assert_eq!(owner(path), Some(CgroupOwner::Machine(name.into())), "{path}");
        }
        let inside = format!("/machine.slice/machine-box.scope/payload/system.slice/docker-{ID}.scope");
        assert_eq!(ids(&inside).0, ID);
    }

    #[test]
    fn a_hostile_path_is_only_text() {
        for name in ["a\\x.service", "a\\xff\\x4.service", "\\xé.service"] {
            assert_eq!(unit(&format!("/{name}")).as_deref(), Some(name));
        }
        let machine = |name: &str| owner(&format!("/machine-{name}.scope"));
        assert_eq!(machine("a\\x4\\xff\\xé"), Some(CgroupOwner::Machine("a\\x4\\xff\\xé".into())));
    }
}
