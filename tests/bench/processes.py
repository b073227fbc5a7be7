"""What counting by process costs, beside a loop of the system calls that give the same (tests/bench/floor/processes.c)."""

import contextlib
import http.client
import re
import statistics
import subprocess
import time

PROBES = ["fd", "io", "cpu"]
ROUNDS = 33
# Before each, in which others take the caches. Longer than `min_interval`: within that the last collection would do.
PAUSE = 0.002
HEAD = ["namespaces", "processes", "probe", "loop of system calls", "probe, CPU", "ratio"]
# The number of sockets is another one, which no loop has for less than a call for each descriptor.
CONFIG = "".join(f"[probes.{name}]\nenabled = true\n" for name in ["io", "cpu", "fd"]) + "sockets = false\n"


def measure(bench, n, port, note):
    """A row for each probe."""
    rows = []
    note(f"{n} namespaces: what is counted by process")
    with bench.running('min_interval = "1ms"', CONFIG) as process:
        processes = len([entry for entry in process.proc.parent.iterdir() if entry.name.isdigit()])
        for name in PROBES:
            with loop(bench.work / "processes", name) as floor:
                # In turn, so that both find the caches as the other left them.
                costs = [(floor(), spent(port, name)) for _ in range(ROUNDS)][2:]
            least, ours = median(costs)
            rows.append({"n": n, "processes": processes, "probe": name, "floor": least, "cost": ours})
    return rows


@contextlib.contextmanager
def loop(program, name):
    """A function that says what the loop costs, in microseconds."""
    child = subprocess.Popen([program, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def once():
        time.sleep(PAUSE)
        child.stdin.write("\n")
        child.stdin.flush()
        return float(child.stdout.readline())

    try:
        yield once
    finally:
        child.stdin.close()
        child.wait(30)


def median(costs):
    """The median of what the loop costs, and of what a collection does: each total less the one before."""
    floors, totals = zip(*costs)
    return statistics.median(floors), statistics.median(after - before for before, after in zip(totals, totals[1:]))


def spent(port, name):
    """Collects for one probe alone: CPU of all its collections so far, in microseconds."""
    time.sleep(PAUSE)
    connection = http.client.HTTPConnection("localhost", port, timeout=60)
    connection.request("GET", f"/metrics?collect[]={name}&set=full")
    text = connection.getresponse().read().decode()
    connection.close()
    cost = re.search(rf'^netskoop_probe_cpu_seconds_total{{probe="{name}"}} (\S+)$', text, re.M)
    if not cost or not re.search(rf"^netskoop_{name}_", text, re.M):
        raise RuntimeError(f"the probe {name} shows nothing")
    return float(cost.group(1)) * 1e6


def table_rows(rows):
    return [
        [f"{row['n']:,}", f"{row['processes']:,}", row["probe"], f"{row['floor']:,.0f} us", f"{row['cost']:,.0f} us", f"{row['cost'] / row['floor']:.2f}"]
        for row in rows
    ]


def targets(rows):
    last = max(row["n"] for row in rows)
    ratios = {row["probe"]: row["cost"] / row["floor"] for row in rows if row["n"] == last}
    return [(f"{name} ≤ its loop of system calls ({last} namespaces)", f"{ratio:.2f} ×", ratio <= 1) for name, ratio in ratios.items()]
