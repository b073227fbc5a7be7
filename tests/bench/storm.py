"""What counting drops and resets costs while packets are dropped as fast as the machine can: without and with the probes, in turn."""

import contextlib
import dataclasses
import json
import os
import re
import statistics
import subprocess
import time
import urllib.request

import packets

ROUNDS = 21
PACKETS = 60_000
SETTLED = 0.3
NAMESPACE = "storm"
CLEAN = ["packetloss", "tcpreset", "tcpretrans"]
HEAD = ["storm", "probes", "ns per packet without", "with", "more", "rate kept", "dropped", "counted", "seen", "submitted", "suppressed", "lost"]
CLEAN_HEAD = ["packets without trouble", *(f"runs of {probe}" for probe in CLEAN)]


@dataclasses.dataclass
class Storm:
    """A way to have packets dropped; the kernel's own counter is exact."""

    kind: str
    title: str
    probes: list
    # The series that has to agree, and how many of it the kernel counts as one.
    reason: str
    each: int
    senders: int = 1


def storms():
    drops = [
        Storm(f"udp{v}", f"UDP to a full socket, IPv{v}", ["packetloss"], "SOCKET_RCVBUFF", 1) for v in (4, 6)
    ]
    resets = [
        Storm(f"tcp{v}", f"segments to a closed port, IPv{v}", ["packetloss", "tcpreset"], "NO_SOCKET", 2) for v in (4, 6)
    ]
    cpus = os.cpu_count() or 1
    both = [dataclasses.replace(drops[0], title=f"{drops[0].title}, {cpus} CPUs", senders=cpus)] if cpus > 1 else []
    return [*drops, *both, *resets]


def measure(bench, port, note):
    """A row for each storm, and one for packets that nothing happens to."""
    rows = []
    options = "".join(f"[probes.{probe}]\nenabled = false\nstack = true\n" for probe in ("packetloss", "tcpreset"))
    # What is measured is the storm, not how the governor ends it.
    with namespace(), bench.running('min_interval = "1ms"', f'{options}[limits]\nbpf_cpu = "0%"\n'):
        wait_named(bench)
        for storm in storms():
            note(f"a storm of drops: {storm.title}, {ROUNDS} rounds")
            without, with_probes, seen = [], [], []
            for _ in range(ROUNDS):
                without.append(blow(bench, storm)[0])
                switch(bench, storm, "enable")
                took, dropped = blow(bench, storm)
                with_probes.append(took)
                seen.append(accounts(bench, port, storm, dropped))
                switch(bench, storm, "disable")
            rows.append({"storm": storm, "without": without, "with": with_probes, "accounts": seen})
    return rows


def switch(bench, storm, how):
    for probe in storm.probes:
        bench.netskoopctl("probes", how, "--runtime", probe)
    time.sleep(SETTLED)


def blow(bench, storm):
    """Nanoseconds of CPU for each packet, and what the kernel counted."""
    command = [bench.work / "drops", storm.kind, PACKETS, storm.senders, f"/run/netns/{NAMESPACE}"]
    took, counted = subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True).stdout.split()
    return float(took), int(counted) * storm.each


def accounts(bench, port, storm, dropped):
    """What was dropped and counted, and where the events went, of all probes of the storm. The counts start with the round."""
    text = scrape(port, storm.probes)
    pattern = rf'^netskoop_packetloss_packets_total{{kind="netns",name="{NAMESPACE}"[^}}]*reason="{storm.reason}"[^}}]*}} (\S+)$'
    counted = sum(int(float(number)) for number in re.findall(pattern, text, re.M))
    if "tcpreset" in storm.probes:
        pattern = rf'^netskoop_tcpreset_resets_total{{kind="netns",name="{NAMESPACE}"[^}}]*cause="no_socket"[^}}]*}} (\S+)$'
        dropped += dropped // storm.each
        counted += sum(int(float(number)) for number in re.findall(pattern, text, re.M))
    streams = [probe["state"]["stream"] for probe in probes(bench) if probe["name"] in storm.probes]
    stream = {key: sum(stream[key] for stream in streams) for key in streams[0]}
    return {"dropped": dropped, "counted": counted, **stream}


def scrape(port, probes):
    query = "&".join(f"collect[]={probe}" for probe in probes)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics?{query}", timeout=60) as answer:
        return answer.read().decode()


def probes(bench):
    answer = json.loads(bench.netskoopctl("probes", "list", "-o", "json"))
    return answer if isinstance(answer, list) else answer["probes"]


def wait_named(bench):
    deadline = time.monotonic() + 30
    while NAMESPACE not in bench.netskoopctl("entities"):
        if time.monotonic() > deadline:
            raise RuntimeError(f"netskoopd does not find the namespace {NAMESPACE}")
        time.sleep(0.1)


@contextlib.contextmanager
def namespace():
    """A namespace whose loopback device is up."""
    subprocess.run(["ip", "netns", "add", NAMESPACE], check=True)
    try:
        subprocess.run(["ip", "-n", NAMESPACE, "link", "set", "lo", "up"], check=True)
        yield
    finally:
        subprocess.run(["ip", "netns", "del", NAMESPACE], capture_output=True)


def clean(bench, stats, note):
    """Runs of the programs that only anomalies may run, while packets flow that nothing happens to."""
    note("packets without trouble")
    with packets.veth(), bench.running('min_interval = "1s"') as process:
        # Also when nothing else happens on the machine, since the programs see all of it.
        looks = [look(bench, process, stats) for _ in range(ROUNDS)]
    return {probe: min(runs[probe] for runs in looks) for probe in CLEAN}


def look(bench, process, stats):
    stats.write_text("1")
    try:
        before = process.programs()
        packets.send(bench, "udp", packets.DATAGRAMS)
        after = process.programs()
    finally:
        stats.write_text("0")
    ids = {probe["name"]: probe["state"].get("programs", []) for probe in probes(bench)}
    # What is not loaded never runs.
    if not all(ids[probe] for probe in CLEAN):
        raise RuntimeError(f"not all of {', '.join(CLEAN)} are on")
    return {probe: sum(after[id][1] - before[id][1] for id in ids[probe]) for probe in CLEAN}


def rate(row):
    """Which part of the rate without the probes is left."""
    return min(row["without"]) / min(row["with"])


def exact(row):
    """Whether each drop was counted, and nothing else, in each round."""
    return all(found["dropped"] == found["counted"] > 0 for found in row["accounts"])


def whole(row):
    """Whether each event is accounted for: fired by one drop, or missed."""
    return all(
        found["seen"] == found["submitted"] + found["suppressed"] + found["ring_full"] and found["seen"] + found["missed"] >= found["dropped"]
        for found in row["accounts"]
    )


def table_rows(rows):
    return [[
        row["storm"].title,
        " + ".join(row["storm"].probes),
        f"{min(row['without']):,.0f}",
        f"{min(row['with']):,.0f}",
        f"{min(row['with']) - min(row['without']):+,.0f}",
        f"{100 * rate(row):.1f} % (median {100 * median(row):.1f} %)",
        *(f"{sum(found[key] for found in row['accounts']):,}" for key in ("dropped", "counted", "seen", "submitted", "suppressed")),
        f"{sum(found['ring_full'] + found['missed'] for found in row['accounts']):,}",
    ] for row in rows]


def median(row):
    """The same of neighbours: each round with the one before it."""
    return statistics.median(before / after for before, after in zip(row["without"], row["with"]))


def targets(rows):
    found = []
    # A segment is three events to count, and has no target.
    for row in (row for row in rows if row["storm"].each == 1):
        found.append((f"rate of drops kept ≥ 90 %: {row['storm'].title}", f"{100 * rate(row):.1f} %", rate(row) >= 0.9))
    if rows:
        dropped, counted = (sum(found[key] for row in rows for found in row["accounts"]) for key in ("dropped", "counted"))
        lost = dropped - counted
        found.append(("each drop and reset of a storm counted", f"{counted:,} of {dropped:,}", lost == 0 and all(map(exact, rows))))
        found.append(("each event accounted for", f"{sum(map(whole, rows))} of {len(rows)} storms", all(map(whole, rows))))
    return found


def clean_targets(runs):
    most = max(runs.values())
    names = ", ".join(CLEAN)
    return [(f"{names}: no run for {packets.DATAGRAMS:,} clean packets", f"{most:,} runs", most == 0)]
