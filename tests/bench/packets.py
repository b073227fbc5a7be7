"""What probes with a hook for every packet cost: a UDP and a TCP stream through a veth pair, without and with them, in turn."""

import contextlib
import json
import subprocess
import time

ROUNDS = 15
DATAGRAMS = 40_000
KIB = 1_000_000
# Loading programs leaves work behind in the kernel.
SETTLED = 0.3
PROBES = ["kernellatency", "netiftxlat", "socketlatency"]
EMPTY = "the same hooks, programs that do nothing"
HEAD = ["probes", "UDP, ns per packet", "more", "TCP, MiB/s", "of that without"]
SENDER, RECEIVER = "packets-a", "packets-b"
ADDRESS = "10.98.0.2"


def measure(bench, note):
    """A row without any of the probes, one for each, one for their hooks alone, and one for all of them."""
    with veth(), bench.running('min_interval = "1s"'):
        found = hooks(bench, note)
        sets = [(), *((probe,) for probe in PROBES), *([(EMPTY,)] if found else []), tuple(PROBES)]
        took = {probes: ([], []) for probes in sets}
        note(f"packets through a veth pair, {ROUNDS} rounds")
        for _ in range(ROUNDS):
            for probes in sets:
                with hooked(bench, found) if probes == (EMPTY,) else on(bench, probes):
                    time.sleep(SETTLED)
                    took[probes][0].append(send(bench, "udp", DATAGRAMS))
                    took[probes][1].append(send(bench, "tcp", KIB))
    # The fastest of each: what comes between only takes time.
    return [{"probes": probes, "udp": min(udp), "tcp": min(tcp)} for probes, (udp, tcp) in took.items()]


@contextlib.contextmanager
def on(bench, probes):
    for probe in probes:
        bench.netskoopctl("probes", "enable", "--runtime", probe)
    yield
    for probe in probes:
        bench.netskoopctl("probes", "disable", "--runtime", probe)


@contextlib.contextmanager
def hooked(bench, hooks):
    """Programs that do nothing are attached until their loader's input ends."""
    with subprocess.Popen([bench.work / "hooks", *hooks], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True) as process:
        if process.stdout.readline() != "ready\n":
            raise RuntimeError(process.stderr.read())
        yield


def listed(bench):
    """Every probe and its state."""
    return json.loads(bench.netskoopctl("probes", "list", "-o", "json"))


def hooks(bench, note):
    """Where the programs of the probes are attached here, as bpftool shows their links; nothing where it is too old for that."""
    try:
        with on(bench, PROBES):
            programs = {id for probe in listed(bench) if probe["name"] in PROBES for id in probe["state"]["programs"]}
            links = json.loads(subprocess.run(["bpftool", "-j", "link", "show"], check=True, capture_output=True, text=True).stdout)
        ours = [link for link in links if link["prog_id"] in programs]
        return ([f"raw_tracepoint:{link['tp_name']}" for link in ours if link["type"] == "raw_tracepoint"]
                + [f"{link['attach_type']}:{link['target_btf_id']}" for link in ours if link["type"] == "tracing"])
    except (OSError, KeyError, ValueError, subprocess.CalledProcessError) as error:
        note(f"no hooks without a probe: {error!r}")
        return []


def send(bench, kind, count):
    command = [bench.work / "packets", kind, count, f"/run/netns/{SENDER}", f"/run/netns/{RECEIVER}", ADDRESS]
    return float(subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True).stdout)


@contextlib.contextmanager
def veth():
    """Two namespaces with a cable between them."""
    try:
        for netns in (SENDER, RECEIVER):
            subprocess.run(["ip", "netns", "add", netns], check=True)
        subprocess.run(["ip", "link", "add", "p0", "netns", SENDER, "type", "veth", "peer", "name", "p0", "netns", RECEIVER], check=True)
        for netns, address in ((SENDER, "10.98.0.1/24"), (RECEIVER, f"{ADDRESS}/24")):
            subprocess.run(["ip", "-n", netns, "addr", "add", address, "dev", "p0"], check=True)
            subprocess.run(["ip", "-n", netns, "link", "set", "p0", "up"], check=True)
        yield
    finally:
        for netns in (SENDER, RECEIVER):
            subprocess.run(["ip", "netns", "del", netns], capture_output=True)


def table_rows(rows):
    bare = rows[0]
    return [[
        " + ".join(row["probes"]) or "none of them",
        f"{row['udp']:,.0f}",
        f"{row['udp'] - bare['udp']:+,.0f}" if row["probes"] else "-",
        f"{speed(row):,.0f}",
        f"{100 * bare['tcp'] / row['tcp']:.1f} %" if row["probes"] else "-",
    ] for row in rows]


def speed(row):
    """MiB in a second."""
    return 1e9 / row["tcp"] / 1024


def targets(rows):
    bare, every = rows[0], rows[-1]
    more, share = every["udp"] - bare["udp"], bare["tcp"] / every["tcp"]
    names = " + ".join(every["probes"])
    return [
        (f"{names} ≤ 600 ns per packet", f"{more:.0f} ns", more <= 600),
        (f"TCP with {names} ≥ 93 %", f"{100 * share:.1f} %", share >= 0.93),
    ]
