//! Whose an event is: the owner of the namespace it happened in; in the node's own namespace, where host-network pods live
//! beside everything else, the container whose cgroup the socket is of. And who is at the other end.

use crate::hooks::Tuple;
use crate::resolve::cgroup::{self, CgroupOwner, Containers};
use crate::resolve::cgroup_tree::{CgroupTree, Found};
use crate::resolve::directory::{ContainerRef, Directory, Owner};
use netskoop_api::{EntityRef, Event, Kind, Value};
use std::net::IpAddr;
use std::sync::Arc;

/// Where an event happened, as its record tells.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// Inode of the namespace; 0 if the kernel context did not tell.
    pub netns: u32,
    /// Its cookie; 0 if the kernel has none.
    pub cookie: u64,
    /// Whose socket it was.
    pub socket: Socket,
}

/// Whose a socket is, by its cgroup.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Socket {
    /// That of a cgroup with this id, whose path is not known yet.
    Later(u64),
    /// A container's.
    Container(Containers),
    /// A systemd unit's.
    Unit(Arc<str>),
    /// That of nobody who has a name of his own, or there is none.
    Other,
}

impl Socket {
    /// By the cgroup's id. It is best asked at once: the path of a cgroup that is gone is soon forgotten.
    pub fn of(cgroup: u64, tree: &mut CgroupTree) -> Socket {
        let owner = match tree.path(cgroup) {
            Found::Later => return Socket::Later(cgroup),
            Found::Missing => None,
            Found::Path(path) => cgroup::owner(&path),
        };
        match owner {
            Some(CgroupOwner::Container(containers)) => Socket::Container(containers),
            Some(CgroupOwner::Unit(name)) => Socket::Unit(name),
            Some(CgroupOwner::Machine(_)) | None => Socket::Other,
        }
    }

    /// Asks again if it is not known yet.
    pub fn resolve(&mut self, tree: &mut CgroupTree) {
        if let Socket::Later(cgroup) = self {
            *self = Socket::of(*cgroup, tree);
        }
    }
}

/// The names that an event carries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Whose it is; `None` if nobody is known.
    pub entity: Option<EntityRef>,
    /// Name of the container whose socket it was.
    pub container: Option<String>,
    /// Who is at the other end.
    pub peer: Option<EntityRef>,
    /// The unit whose socket it was, in the node's own namespace.
    pub unit: Option<String>,
    /// Whether it happened in the node's own namespace.
    pub in_host: bool,
    /// Whether these are the best names there will be; else better ones may come soon.
    pub settled: bool,
}

impl Names {
    /// As the picture of the namespaces is now.
    pub fn find(directory: &Directory, place: &Place, tuple: Option<&Tuple>) -> Names {
        let Some(owner) = directory.event_owner(place.netns, place.cookie) else {
            return Names { settled: place.netns == 0, ..Names::default() };
        };
        let container = match &place.socket {
            Socket::Container(all) => all.known_ids().find_map(|id| directory.container(id)),
            _ => None,
        };
        let names = own_names(&owner, place, container.as_ref());
        let address = |address: IpAddr| directory.by_address(address);
        let ends = tuple.map(|tuple| [address(tuple.src), address(tuple.dst)]);
        let own = [names.entity.as_ref(), Some(owner.entity)];
        let peer = ends.and_then(|[src, dst]| peer(own, src, dst)).cloned();
        Names { peer, ..names }
    }

    /// Puts them into an event.
    pub fn put(&self, event: &mut Event, netns: u32) {
        event.entity.clone_from(&self.entity);
        event.container.clone_from(&self.container);
        event.peer.clone_from(&self.peer);
        // Without a name, the number is all there is to search for.
        match self.entity.is_none() && netns != 0 {
            true => drop(event.fields.insert("netns".into(), Value::Number(netns.into()))),
            false => drop(event.fields.remove("netns")),
        }
        if let Some(unit) = &self.unit {
            event.fields.insert("unit".into(), Value::Text(unit.clone()));
        }
    }
}

/// Whose the event is, given the owner of its namespace and what is known of the container whose socket it was.
fn own_names(owner: &Owner<'_>, place: &Place, container: Option<&ContainerRef<'_>>) -> Names {
    let is_host = owner.entity.kind == Kind::Host;
    let entity = Some(owner.entity.clone());
    let names = Names { entity, in_host: is_host, settled: owner.settled, ..Names::default() };
    match (&place.socket, container) {
        (Socket::Later(_), _) => Names { settled: false, ..names },
        (Socket::Container(_), Some(known)) if is_host => {
            Names { entity: Some(known.entity.clone()), container: Some(known.name.to_owned()), ..names }
        }
        // A container's process that works in another's namespace is not a container of that pod.
        (Socket::Container(_), Some(known)) if known.entity == owner.entity => {
            Names { container: Some(known.name.to_owned()), ..names }
        }
        (Socket::Container(containers), None) if is_host => {
            let id = containers.own_id();
            let name = id.get(..12).unwrap_or(id).to_owned();
            let netns = owner.entity.netns;
            let entity = EntityRef { kind: Kind::Container, name, namespace: None, pod: None, netns };
            Names { entity: Some(entity), settled: false, ..names }
        }
        (Socket::Unit(unit), _) if is_host => Names { unit: Some(unit.to_string()), ..names },
        _ => names,
    }
}

/// The end that is not our own. If neither is, the packet is on its way from one to the other: then it is whom it is for.
fn peer<'a>(
    own: [Option<&EntityRef>; 2],
    src: Option<&'a EntityRef>,
    dst: Option<&'a EntityRef>,
) -> Option<&'a EntityRef> {
    [dst, src].into_iter().find(|end| end.is_some() && !own.contains(end)).flatten()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    pub(in crate::events) fn entity(kind: Kind, name: &str, netns: u32) -> EntityRef {
        EntityRef { kind, name: name.into(), namespace: None, pod: None, netns }
    }

    fn place(socket: Socket) -> Place {
        Place { netns: 1, cookie: 0, socket }
    }

    fn of_container() -> Place {
        match cgroup::owner(&format!("/kubepods/pod1/{ID}")) {
            Some(CgroupOwner::Container(containers)) => place(Socket::Container(containers)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn in_the_nodes_namespace_a_socket_is_its_containers() {
        let (host, pod) = (entity(Kind::Host, "host", 1), entity(Kind::Pod, "kube-system/proxy", 1));
        let owner = Owner { entity: &host, settled: true };
        let known = ContainerRef { entity: &pod, name: "proxy" };
        let names = own_names(&owner, &of_container(), Some(&known));
        assert_eq!((names.entity, names.container), (Some(pod), Some("proxy".into())));
        assert!(names.settled && names.in_host);
        // One that no source knows is called by its id until one does.
        let names = own_names(&owner, &of_container(), None);
        assert_eq!(names.entity, Some(entity(Kind::Container, "0123456789ab", 1)));
        assert_eq!((names.container, names.settled), (None, false));
    }

    #[test]
    fn in_a_pod_the_container_is_told_and_the_pod_stays() {
        let (pod, other) = (entity(Kind::Pod, "shop/cart", 7), entity(Kind::Pod, "cni/agent", 1));
        let owner = Owner { entity: &pod, settled: true };
        let names = |entity| own_names(&owner, &of_container(), Some(&ContainerRef { entity, name: "app" }));
        assert_eq!((names(&pod).entity, names(&pod).container), (Some(pod.clone()), Some("app".into())));
        assert_eq!((names(&other).entity, names(&other).container), (Some(pod.clone()), None));
        let unknown = own_names(&owner, &of_container(), None);
        assert_eq!((unknown.entity, unknown.container, unknown.settled), (Some(pod.clone()), None, true));
    }

    #[test]
    fn a_unit_is_told_beside_the_host() {
        let (host, blue) = (entity(Kind::Host, "host", 1), entity(Kind::Netns, "blue", 7));
        let place = place(Socket::Unit("nginx.service".into()));
        let names = |entity| own_names(&Owner { entity, settled: true }, &place, None);
        assert_eq!(
            (names(&host).entity, names(&host).unit),
            (Some(host.clone()), Some("nginx.service".into()))
        );
        assert_eq!(names(&blue).unit, None);
    }

    #[test]
    fn what_is_provisional_is_not_settled() {
        let host = entity(Kind::Host, "host", 1);
        let names =
            |settled, socket| own_names(&Owner { entity: &host, settled }, &place(socket), None).settled;
        assert!(names(true, Socket::Other));
        assert!(!names(false, Socket::Other) && !names(true, Socket::Later(7)));
    }

    #[test]
    fn the_peer_is_who_is_not_oneself() {
        let (host, a, b) =
            (entity(Kind::Host, "host", 1), entity(Kind::Pod, "a", 2), entity(Kind::Pod, "b", 3));
        let (host, a, b) = (Some(&host), Some(&a), Some(&b));
        assert_eq!((peer([a, a], a, b), peer([a, a], b, a)), (b, b));
        assert_eq!(peer([host, host], a, b), b, "a packet that is forwarded");
        assert_eq!((peer([host, host], a, None), peer([host, host], None, a)), (a, a));
        assert_eq!((peer([a, a], a, a), peer([a, a], None, a), peer([a, a], None, None)), (None, None, None));
        // A pod in the node's namespace has the node's addresses.
        assert_eq!((peer([a, host], host, b), peer([a, host], host, None)), (b, None));
    }

    #[test]
    fn a_number_stands_in_for_a_missing_name() {
        let mut event = crate::events::bus::tests::event("X");
        Names::default().put(&mut event, 7);
        assert_eq!(event.fields.get("netns"), Some(&Value::Number(7)));
        let blue = entity(Kind::Netns, "blue", 7);
        Names { entity: Some(blue.clone()), ..Names::default() }.put(&mut event, 7);
        assert_eq!((event.entity, event.fields.len()), (Some(blue), 0));
        let mut nowhere = crate::events::bus::tests::event("X");
        Names::default().put(&mut nowhere, 0);
        assert!(nowhere.fields.is_empty());
    }
}
