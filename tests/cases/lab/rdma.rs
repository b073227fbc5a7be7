//! RDMA over an ordinary interface.

use super::Outcome::{NotHere, Seen};
use super::{Lab, Outcome, modprobe, run};
use crate::support::until;

pub(super) fn rxe(lab: &Lab) -> Outcome {
    if !modprobe("rdma_rxe") {
        return NotHere("no module rdma_rxe".to_owned());
    }
    modprobe("dummy");
    run("ip", &["link", "add", "rd0", "type", "dummy"]);
    run("ip", &["addr", "add", "10.9.200.1/24", "dev", "rd0"]);
    run("ip", &["link", "set", "rd0", "up"]);
    run("rdma", &["link", "add", "rxe0", "type", "rxe", "netdev", "rd0"]);
    let labels = ",device=\"rxe0\",port=\"1\",counter=\"sent_pkts\"";
    until("its counters", || lab.value("rdma", "counter_total", "host", labels));
    // The kernel itself holds one to speak to the subnet.
    until("its resources", || {
        let held = lab.value("rdma", "resources", "host", ",device=\"rxe0\",resource=\"qp\"")?;
        (held >= 1.0).then_some(())
    });
    Seen("counters and resources of rxe0".to_owned())
}
