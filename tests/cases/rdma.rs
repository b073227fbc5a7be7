use crate::support::{Setup, series};
use netskoop_api::StateName;
use std::path::Path;

fn file(sys: &Path, path: &str, text: &str) {
    let path = sys.join("class/infiniband").join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

#[test]
fn counters_have_the_names_of_the_driver_and_those_that_kubeskoop_knew() {
    let setup = Setup::new();
    let sys = setup.dir.0.join("sys");
    for (name, value) in [("counters/port_rcv_data", "4096\n"), ("counters/VL15_dropped", "2\n")] {
        file(&sys, &format!("mlx5_0/ports/1/{name}"), value);
    }
    file(&sys, "mlx5_0/ports/1/hw_counters/of_tomorrow", "9\n");
    file(&sys, "erdma_1/ports/1/hw_counters/hw_rx_bytes_cnt", "77\n");
    file(&sys, "rxe0/ports/1/hw_counters/sent_pkts", "5\n");
    let daemon = setup.set("paths", &format!("sys = \"{}\"", sys.display())).pull_only().start();
    assert_eq!(daemon.probe("rdma").state.state, StateName::On);
    let text = daemon.scrape("/metrics?names=netskoop,kubeskoop&collect[]=rdma");
    let native = |device: &str, counter: &str| {
        let labels =
            format!("kind=\"host\",name=\"host\",device=\"{device}\",port=\"1\",counter=\"{counter}\"");
        series(&text, &format!("netskoop_rdma_counter_total{{{labels}}}"))
    };
    let all =
        [native("mlx5_0", "port_rcv_data"), native("mlx5_0", "of_tomorrow"), native("rxe0", "sent_pkts")];
    assert_eq!(all, [Some(4096.0), Some(9.0), Some(5.0)], "{text}");
    let older = |name: &str, device: &str, kind: &str| {
        let head = format!("kubeskoop_rdma_{name}{{");
        let tail = format!("device=\"{device}\",type=\"{kind}\",port=\"1\"}}");
        let lines: Vec<_> = text.lines().filter(|line| line.starts_with(&head)).collect();
        assert!(lines.len() <= 1, "{lines:?}");
        let (name, value) = lines.first()?.rsplit_once(' ')?;
        assert!(name.ends_with(&tail), "{name}");
        value.parse::<f64>().ok()
    };
    assert_eq!(older("mlx5_port_rcv_data", "mlx5_0", "mlx5"), Some(4096.0));
    assert_eq!(older("mlx5_VL15_dropped", "mlx5_0", "mlx5"), Some(2.0));
    assert_eq!(older("erdma_hw_rx_bytes_cnt", "erdma_1", "erdma"), Some(77.0));
    assert!(!text.contains("unknown_sent_pkts"), "KubeSkoop had no name for it");
}

#[test]
fn what_the_node_does_not_have_is_said_and_no_error() {
    let setup = Setup::new();
    let sys = setup.dir.0.join("sys");
    let setup =
        setup.set("paths", &format!("sys = \"{}\"", sys.display())).set("probes.ipvs", "enabled = true");
    let daemon = setup.pull_only().start();
    let rdma = format!("there is no RDMA device in {}/class/infiniband", sys.display());
    let ip_vs = "the kernel module ip_vs is not loaded, and the daemon loads none";
    for (probe, reason) in [("rdma", &*rdma), ("ipvs", ip_vs)] {
        let state = daemon.probe(probe).state;
        // Where the module is loaded, there is nothing to be said.
        if state.state == StateName::On && Path::new("/sys/module/ip_vs").exists() {
            continue;
        }
        assert_eq!((state.state, state.reason.as_deref()), (StateName::NotAvailable, Some(reason)));
        let text = daemon.scrape(&format!("/metrics?collect[]={probe}"));
        assert!(!text.contains(&format!("netskoop_probe_success{{probe=\"{probe}\"}}")), "{text}");
    }
    let loud = daemon.log().into_iter().filter(|line| line.contains("WARN") || line.contains("ERROR"));
    let ours: Vec<_> = loud.filter(|line| line.contains("rdma") || line.contains("ip_vs")).collect();
    assert_eq!(ours, Vec::<String>::new());
}
