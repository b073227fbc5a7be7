//! Load balancing by IPVS.

use super::Outcome::{NotHere, Seen};
use super::{Lab, Outcome, Pair, modprobe};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

pub(super) fn balanced(lab: &Lab) -> Outcome {
    if !modprobe("ip_vs") || !modprobe("ip_vs_rr") {
        return NotHere("no module ip_vs".to_owned());
    }
    let pair = Pair::new(lab, "vip", 11);
    for option in ["services", "destinations"] {
        lab.option("ipvs", option, "true");
    }
    for version in [4, 6] {
        // The service and its server are at one place; only ports differ.
        let (service, server) = (pair.far(version, 80), pair.far(version, 8080));
        let (to, from) = (service.to_string(), server.to_string());
        pair.far.run("ipvsadm", &["-A", "-t", &to, "-s", "rr"]);
        pair.far.run("ipvsadm", &["-a", "-t", &to, "-r", &from, "-m"]);
        let listener = pair.far.enter(|| TcpListener::bind(server).unwrap());
        for _ in 0..3 {
            let mut client = pair.near.enter(|| TcpStream::connect(service).unwrap());
            let mut accepted = listener.accept().unwrap().0;
            client.write_all(b"hello").unwrap();
            drop(client);
            accepted.read_to_end(&mut Vec::new()).unwrap();
        }
        let labels = format!(",protocol=\"tcp\",service=\"{service}\",scheduler=\"rr\"");
        lab.wait("ipvs", "service_connections_total", &pair.far, &labels, |value| value == 3.0);
        lab.wait("ipvs", "service_incoming_bytes_total", &pair.far, &labels, |value| value > 15.0);
        let labels = format!(",protocol=\"tcp\",service=\"{service}\",destination=\"{server}\"");
        lab.wait("ipvs", "destination_connections_total", &pair.far, &labels, |value| value == 3.0);
    }
    assert_eq!(lab.value("ipvs", "connections_total", &pair.far.0, ""), Some(6.0));
    // On 5.10 a route of such a namespace may outlive it, and then the kernel waits for it before it takes apart any other:
    // it stays until the machine goes.
    std::mem::forget(pair);
    Seen("services and servers v4 v6".to_owned())
}
