"""What TCP sockets cost: a namespace with many of them, beside a loop that receives the kernel's list of them and looks at
nothing (tests/bench/floor/sockets.c)."""

import contextlib
import http.client
import os
import re
import statistics
import subprocess

COUNTS = [int(n) for n in os.environ.get("SOCKETS", "2 1000 10000 100000").split()]
LIMIT = 1.2
ROUNDS = 15
HEAD = ["sockets", "bare loop", "probe tcpsummary", "per socket: loop", "probe", "ratio", "memory"]
NAMESPACE = "crowd"
CONFIG = "[probes.tcpsummary]\nmax_milliseconds = 900\nmax_total_milliseconds = 10000\n"
COST = re.compile(r'^netskoop_probe_duration_seconds\{probe="tcpsummary"\} (\S+)$', re.M)
FOUND = re.compile(r'^netskoop_tcpsummary_connections\{kind="netns",name="crowd",state="established"\} (\d+)$', re.M)


def measure(bench, port, note):
    """A row for each number of sockets."""
    rows = []
    for n in COUNTS:
        note(f"{n} TCP sockets in a namespace")
        with crowd(bench.work / "sockets", n) as floor, bench.running('min_interval = "1ms"', CONFIG) as process:
            # In turn, so that both find the caches as the other left them.
            costs = [(floor(), scrape(port, n)) for _ in range(ROUNDS)][2:]
            loop, probe = (statistics.median(times) for times in zip(*costs))
            rows.append({"n": n, "floor": loop, "probe": probe, "memory": process.memory()[1]})
    return rows


@contextlib.contextmanager
def crowd(program, n):
    """Sockets in a namespace of their own; a function that says what the bare loop costs, in microseconds."""
    subprocess.run(["ip", "netns", "add", NAMESPACE], check=True)
    try:
        subprocess.run(["ip", "-n", NAMESPACE, "link", "set", "lo", "up"], check=True)
        command = ["ip", "netns", "exec", NAMESPACE, program, str(n)]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            if child.stdout.readline() != "ready\n":
                raise RuntimeError(f"the sockets could not be made: it ended with {child.wait()}")

            def floor():
                child.stdin.write("\n")
                child.stdin.flush()
                return float(child.stdout.readline())

            yield floor
        finally:
            child.stdin.close()
            child.wait(30)
    finally:
        subprocess.run(["ip", "netns", "del", NAMESPACE], check=True)


def scrape(port, n):
    """CPU of the probe in one collection, in microseconds."""
    connection = http.client.HTTPConnection("localhost", port, timeout=60)
    connection.request("GET", "/metrics?collect[]=tcpsummary&set=full")
    text = connection.getresponse().read().decode()
    connection.close()
    found = FOUND.search(text)
    if not found or int(found.group(1)) != n // 2 * 2:
        raise RuntimeError(f"of {n} sockets the daemon shows {found and found.group(1)}")
    return float(COST.search(text).group(1)) * 1e6


def per_socket(row, base, key):
    """What the sockets cost that the smallest row has not."""
    return (row[key] - base[key]) / (row["n"] - base["n"])


def table_rows(rows):
    base, lines = rows[0], []
    for row in rows:
        cells = ["-", "-", "-"]
        if row is not base:
            loop, probe = per_socket(row, base, "floor"), per_socket(row, base, "probe")
            cells = [f"{loop:.3f} us", f"{probe:.3f} us", f"{probe / loop:.2f}"]
        lines.append([f"{row['n']:,}", f"{row['floor']:,.0f} us", f"{row['probe']:,.0f} us", *cells, f"{row['memory']:.1f} MiB"])
    return lines


def targets(rows):
    """Costs per socket are those of the largest number."""
    last = rows[-1]
    ratio = per_socket(last, rows[0], "probe") / per_socket(last, rows[0], "floor")
    return [(f"tcpsummary per socket ≤ {LIMIT} × bare loop", f"{ratio:.2f} × ({last['n']:,} sockets)", ratio <= LIMIT)]
