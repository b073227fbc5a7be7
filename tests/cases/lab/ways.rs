//! Ways to see something that the daemon takes where a better one does not work. On the kernels of the lab a better one
//! does, so here each is tried by itself.

use crate::anomalies::late_data;
use crate::root::{address, refused};
use crate::support::{Netns, until};
use libbpf_rs::skel::{OpenSkel, Skel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags};
use netskoop_bpf::kernellatency::KernellatencySkelBuilder;
use netskoop_bpf::tcpconnect::TcpconnectSkelBuilder;
use netskoop_bpf::tcpreset::TcpresetSkelBuilder;
use netskoop_bpf::tcptwrcv::TcptwrcvSkelBuilder;
use netskoopd::declare::histogram::SLOTS;
use netskoopd::kernel::features::Features;
use netskoopd::kernel::ways::{Way, load_only};
use netskoopd::probes::kernellatency::WAYS;
use netskoopd::probes::tcpconnect::CALLS;
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener, TcpStream};

/// In the programs' `enum cause` and `enum type`.
const NO_SOCKET: u32 = 0;
const DATA: u32 = 3;
const NO_ROUTE: u32 = 6;

/// Has something happen with only the programs of one way attached, until they have counted it in a namespace.
fn counted<'o>(
    mut open: impl OpenSkel<'o>,
    way: &Way,
    netns: &Netns,
    (what, times): (u32, u64),
    happen: impl FnOnce(),
) {
    load_only(open.open_object_mut(), &[way]);
    let skel = open.load().unwrap_or_else(|error| panic!("load {way:?}: {error:#}"));
    let mut links = Vec::new();
    for program in skel.object().progs_mut().filter(|program| program.autoload()) {
        links.push(program.attach().unwrap_or_else(|error| panic!("attach {way:?}: {error:#}")));
    }
    assert_eq!(links.len(), way.programs.len());
    happen();
    let map = skel.object().maps().find(|map| map.name() == "counters").unwrap();
    let number = |bytes: &[u8]| u32::from_ne_bytes(*bytes.first_chunk().unwrap());
    until(&format!("{way:?} has counted"), || {
        let key = map.keys().find(|key| (number(key), number(&key[4..])) == (netns.inode(), what))?;
        let value = map.lookup(&key, MapFlags::ANY).unwrap()?;
        (u64::from_ne_bytes(*value.first_chunk().unwrap()) == times).then_some(())
    });
}

/// Arguments of the tracepoint for freed packets.
fn freed() -> u8 {
    let features = Features::load(None, &[]).unwrap();
    features.tracepoint("kfree_skb").unwrap().try_into().unwrap()
}

#[test]
#[ignore = "runs in the kernels of the lab: make test-kernels"]
fn resets_without_a_socket_are_seen_in_every_way() {
    std::fs::create_dir_all("/run/netns").unwrap();
    let (near, far) = (Netns::new("ways-near"), Netns::new("ways-far"));
    near.cable(&far, 18);
    let mut ways = vec![
        Way::new("fentry", &["fentry_v4", "fentry_v6"]),
        Way::new("kprobe", &["kprobe_v4", "kprobe_v6"]),
    ];
    // Without a reason it cannot stand in.
    if freed() > 2 {
        ways.push(Way::new("tp_btf", &["on_no_socket"]));
    }
    for (way, port) in ways.iter().zip(7900..) {
        let mut storage = MaybeUninit::uninit();
        let mut open = TcpresetSkelBuilder::default().open(&mut storage).unwrap();
        open.maps.rodata_data.as_deref_mut().unwrap().kfree_skb_arguments = freed();
        counted(open, way, &far, (NO_SOCKET, 2), || {
            for version in [4, 6] {
                refused(&near, address(version, 18, 1, 20_018), address(version, 18, 2, port));
            }
        });
    }
}

#[test]
#[ignore = "runs in the kernels of the lab: make test-kernels"]
fn connections_without_a_route_are_seen_in_every_way() {
    std::fs::create_dir_all("/run/netns").unwrap();
    let near = Netns::new("nowhere");
    for way in CALLS {
        let mut storage = MaybeUninit::uninit();
        let open = TcpconnectSkelBuilder::default().open(&mut storage).unwrap();
        counted(open, way, &near, (NO_ROUTE, 3), || {
            for target in ["198.51.100.1:9", "[2001:db8::1]:9", "[::ffff:198.51.100.2]:9"] {
                let target: SocketAddr = target.parse().unwrap();
                assert!(near.enter(|| TcpStream::connect(target)).is_err());
            }
        });
    }
}

/// How many times the programs have measured in a namespace: what the slots of a histogram add up to.
fn times(object: &libbpf_rs::Object, netns: &Netns, path: u32) -> u64 {
    let map = object.maps().find(|map| map.name() == "counters").unwrap();
    let number = |bytes: &[u8]| u32::from_ne_bytes(*bytes.first_chunk().unwrap());
    let key = map.keys().find(|key| (number(key), number(&key[4..])) == (netns.inode(), path));
    let value = key.and_then(|key| map.lookup(&key, MapFlags::ANY).unwrap()).unwrap_or_default();
    let slots = value.as_chunks().0.iter().skip(1).take(SLOTS);
    slots.map(|word| u64::from_ne_bytes(*word)).sum()
}

#[test]
#[ignore = "runs in the kernels of the lab: make test-kernels"]
fn packets_are_measured_in_every_way() {
    std::fs::create_dir_all("/run/netns").unwrap();
    let (near, far) = (Netns::new("path-near"), Netns::new("path-far"));
    near.cable(&far, 25);
    for way in WAYS {
        let mut storage = MaybeUninit::uninit();
        let mut open = KernellatencySkelBuilder::default().open(&mut storage).unwrap();
        load_only(open.open_object_mut(), &[way]);
        let skel = open.load().unwrap_or_else(|error| panic!("load {way:?}: {error:#}"));
        let mut links = Vec::new();
        for program in skel.object().progs_mut().filter(|program| program.autoload()) {
            links.push(program.attach().unwrap_or_else(|error| panic!("attach {way:?}: {error:#}")));
        }
        let (mut received, mut sent) = (0, 0);
        for version in [4, 6] {
            let target = address(version, 25, 2, 7920);
            let listener = far.enter(|| TcpListener::bind(target).unwrap());
            let mut client = near.enter(|| TcpStream::connect(target).unwrap());
            let mut server = listener.accept().unwrap().0;
            for _ in 0..5 {
                client.write_all(b"hello").unwrap();
                server.read_exact(&mut [0; 5]).unwrap();
            }
            let (new_received, new_sent) = until(&format!("{way:?} has measured"), || {
                let now = (times(skel.object(), &far, 0), times(skel.object(), &near, 1));
                (now.0 >= received + 5 && now.1 >= sent + 5).then_some(now)
            });
            (received, sent) = (new_received, new_sent);
        }
    }
}

#[test]
#[ignore = "runs in the kernels of the lab: make test-kernels"]
fn late_data_is_seen_in_every_way() {
    std::fs::create_dir_all("/run/netns").unwrap();
    let (near, far) = (Netns::new("late-near"), Netns::new("late-far"));
    near.cable(&far, 19);
    let ways = [Way::new("fentry", &["fentry_timewait"]), Way::new("kprobe", &["kprobe_timewait"])];
    for (way, port) in ways.iter().zip(7910..) {
        let mut storage = MaybeUninit::uninit();
        let open = TcptwrcvSkelBuilder::default().open(&mut storage).unwrap();
        counted(open, way, &near, (DATA, 2), || {
            for version in [4, 6] {
                late_data(&near, &far, address(version, 19, 2, port));
            }
        });
    }
}
