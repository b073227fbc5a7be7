"""Measures netskoopd beside the floor program; started by run.sh inside namespaces of its own.

    bench.py WORKDIR NETSKOOPD NETSKOOPCTL RUNTIME "1 10 100 1000"

RUNTIME is the program that serves as a large containerd.

CPU time is the scheduler's, in nanoseconds, of all threads and of those that have ended.
"""

import contextlib
import dataclasses
import datetime
import http.client
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import crowd
import identity
import packets
import processes
import programs
import storm
import tracked

HERE = pathlib.Path(__file__).resolve().parent
DOC = HERE.parent.parent / "docs" / "benchmarks.md"
PORT = 9102
# The files that the default probes read for each namespace.
FILES = ["snmp", "netstat", "dev", "sockstat", "sockstat6", "snmp6"]
IDLE_SECONDS = float(os.environ.get("IDLE", "30"))
# "names", "sockets", "processes", "tracked", "packets", "storm", "programs" and "reads" leave out everything but that; nothing is
# written then.
ONLY = os.environ.get("ONLY", "")
# The environment in which the unit runs it.
UNIT = dict(re.findall(r"^Environment=(\w+)=(\S+)$", (HERE.parent.parent / "systemd" / "netskoopd.service").read_text(), re.M))
STATS = pathlib.Path("/proc/sys/kernel/bpf_stats_enabled")


def main():
    work, daemon, ctl, runtime, counts = sys.argv[1:]
    counts = [int(n) for n in counts.split()]
    # The host's /run stays as it is; `ip netns` and the daemon use this one.
    run("mount", "-t", "tmpfs", "none", "/run")
    run("ip", "link", "set", "lo", "up")
    bench = Bench(pathlib.Path(work), daemon, ctl)
    try:
        rows, names, by_process = [], [], []
        sockets = crowd.measure(bench, PORT, note) if ONLY in ("", "sockets") else []
        connections = tracked.measure(bench, PORT, note) if ONLY in ("", "tracked") else []
        streams = packets.measure(bench, note) if ONLY in ("", "packets") else []
        storms = storm.measure(bench, PORT, note) if ONLY in ("", "storm") else []
        clean = storm.clean(bench, STATS, note) if ONLY in ("", "storm") else {}
        for n in counts if ONLY not in ("sockets", "tracked", "packets", "storm", "programs") else []:
            bench.make(n)
            if ONLY in ("", "reads"):
                rows.append(bench.round(n))
            if ONLY in ("", "processes") and n >= 10:
                by_process += processes.measure(bench, n, PORT, note)
            if ONLY in ("", "names") and n >= 100:
                names.append(identity.measure(bench, runtime, n, IDLE_SECONDS))
        costs, tools = programs.measure(bench, PORT, note) if ONLY in ("", "programs") else ([], [])
    finally:
        run(HERE / "floor" / "rmns.sh", env={"FLOOR_DIR": str(bench.work / "state")})
    found = Found(rows, names, sockets, by_process, connections, streams, storms, clean, costs, tools)
    report = render(found, (pathlib.Path(work) / "commit").read_text().strip())
    print(report)
    if {100, 1000} <= set(counts) and not ONLY:
        DOC.write_text(report)
        print(f"written to {DOC}")
    else:
        print("docs/benchmarks.md is left as it is: it needs 100 and 1000 namespaces")


@dataclasses.dataclass
class Found:
    """What was measured."""

    rows: list
    names: list
    sockets: list
    by_process: list
    connections: list
    streams: list
    storms: list
    clean: dict
    programs: list
    tools: list


class Bench:
    def __init__(self, work, daemon, ctl):
        self.work, self.daemon, self.ctl = work, daemon, ctl

    def make(self, n):
        note(f"{n} namespaces: making them")
        run(HERE / "floor" / "mkns.sh", str(n), env={"FLOOR_DIR": str(self.work / "state")})

    def round(self, n):
        """All numbers for n namespaces but those about names."""
        note(f"{n} namespaces: floor")
        row = {"n": n, **self.floor(n)}
        note(f"{n} namespaces: a collection for every scrape")
        with self.running('min_interval = "1ms"') as process:
            row["fresh"] = measure(process, scrapes=100 if n <= 100 else 30, gap=0.0015)
            row["cold"] = measure(process, scrapes=20 if n <= 100 else 10, gap=0.5)
            row["memory"] = process.memory()
        note(f"{n} namespaces: the same without TCP sockets, which are of medium cost")
        with self.running('min_interval = "1ms"', "[probes.tcpsummary]\nenabled = false\n") as process:
            row["low"] = measure(process, scrapes=100 if n <= 100 else 30, gap=0.0015)
        note(f"{n} namespaces: scrapes of one collection, then {IDLE_SECONDS:.0f} s without any")
        with self.running('min_interval = "1h"') as process:
            row["cached"] = measure(process, scrapes=30, gap=0.05)
            row["gzip"] = measure(process, scrapes=10, gap=0.05, encoding="gzip")
            row["idle"] = process.idle(IDLE_SECONDS)
        return row

    def floor(self, n):
        # Reading tcp and tcp6, which the floor program does too, costs milliseconds for each namespace.
        iterations = {1: 31, 10: 15, 100: 7}.get(n, 3)
        text = run(self.work / "floor", self.work / "state" / "pods.txt", str(iterations))
        (self.work / f"floor.{n}.txt").write_text(text)
        return parse_floor(text)

    def netskoopctl(self, *words):
        return run(self.ctl, "--socket", "/run/netskoop/netskoopd.sock", *words)

    @contextlib.contextmanager
    def running(self, metrics, rest=""):
        # What an earlier part has switched with --runtime outlives its daemon.
        pathlib.Path("/run/netskoop/state.json").unlink(missing_ok=True)
        config = self.work / "netskoopd.toml"
        config.write_text(f'[http]\nlisten = ["127.0.0.1:{PORT}"]\n[metrics]\n{metrics}\ntimeout = "60s"\n{rest}')
        log = self.work / "netskoopd.log"
        with open(log, "w") as output:
            command = [self.daemon, "--config", config]
            child = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env={**os.environ, **UNIT})
        process = Process(child.pid)
        try:
            wait_ready(child, log)
            yield process
        finally:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                note("netskoopd did not end within 10 s of SIGTERM")
                child.kill()
                child.wait()


class Process:
    def __init__(self, pid):
        self.proc = pathlib.Path(f"/proc/{pid}")
        # What clock_getcpuclockid(3) answers: the CPU clock of another process.
        self.clock = ~pid << 3 | 2

    def cpu(self):
        """Seconds of CPU time."""
        return time.clock_gettime(self.clock)

    def idle(self, seconds):
        """Share of a core that is used when nobody asks."""
        start = self.cpu()
        time.sleep(seconds)
        return (self.cpu() - start) / seconds

    def memory(self):
        """Resident memory now and at most, in MiB."""
        status = (self.proc / "status").read_text()
        return [int(re.search(rf"{key}:\s+(\d+)", status).group(1)) / 1024 for key in ("VmRSS", "VmHWM")]

    def programs(self):
        """Run time, runs and verified instructions of the BPF programs that the process holds, by id."""
        return programs.held(self.proc.name)


def measure(process, scrapes, gap, encoding=None):
    """Scrapes over one kept connection: CPU and latency in milliseconds, size, number of series."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=120)
    headers = {"Accept": "text/plain"} | ({"Accept-Encoding": encoding} if encoding else {})

    def scrape():
        start = time.perf_counter()
        connection.request("GET", "/metrics", headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"/metrics answered {answer.status}: {body[:200]!r}")
        return (time.perf_counter() - start) * 1e3, body

    # Buffers and caches fill with the first ones.
    scrape(), scrape()
    background = process.idle(1)
    latencies, start, began = [], process.cpu(), time.monotonic()
    for _ in range(scrapes):
        latency, body = scrape()
        latencies.append(latency)
        time.sleep(gap)
    cpu = process.cpu() - start - background * (time.monotonic() - began)
    connection.close()
    latencies.sort()
    return {
        "cpu": max(cpu, 0) / scrapes * 1e3,
        "p50": latencies[len(latencies) // 2],
        "max": latencies[-1],
        "bytes": len(body),
        "series": sum(1 for line in body.split(b"\n") if line and not line.startswith(b"#")),
    }


def wait_ready(child, log):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise RuntimeError(f"netskoopd ended with {child.returncode}:\n{log.read_text()}")
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
            connection.request("GET", "/-/ready")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.05)
    raise RuntimeError(f"netskoopd is not ready after 60 s:\n{log.read_text()}")


def parse_floor(text):
    """CPU microseconds per namespace from the floor program's lines."""
    costs = {}
    for line in text.splitlines():
        if found := re.match(r"(.+?)\s+cpu\s+[\d.]+ us total\s+([\d.]+) us/netns", line):
            costs[found.group(1)] = float(found.group(2))
    files = sum(costs[f"open+read+close /proc/PID/net/{file}"] for file in FILES)
    # Queueing disciplines and connection tracking are asked inside, each over a socket of its own.
    visit = (
        costs["open+close /proc/PID/ns/net"]
        + costs["setns + socket(NETLINK_ROUTE)+close"]
        + costs["setns + setns back"]
        - costs["setns(kept nsfd) round robin"]
    )
    asked = costs["kept rtnl sock RTM_GETQDISC dump"] + costs["kept netfilter sock CT_GET_STATS(_CPU)"]
    return {
        "floor6": files,
        "floor": files + 2 * visit + asked,
        "floor5": costs["kept dirfd openat+1read+close, 5 files"],
    }


def verdict(found):
    """The targets, and whether they are met. Targets about a number of namespaces that was not measured are left out."""
    by = {row["n"]: row for row in found.rows}
    targets = []
    for n in (100, 1000):
        if row := by.get(n):
            targets.append((f"collection of {n} namespaces ≤ 1.5 × floor", f"{ratio(row):.2f} ×", ratio(row) <= 1.5))
    if row := by.get(1000):
        cached = row["cached"]["p50"]
        targets.append(("cached scrape of 1000 namespaces < 15 ms", f"{cached:.1f} ms (p50)", cached < 15))
    for n, limit in ((10, 12), (1000, 64)):
        if row := by.get(n):
            most = row["memory"][1]
            targets.append((f"resident memory at {n} namespaces < {limit} MiB", f"{most:.1f} MiB (most)", most < limit))
    if found.rows:
        worst = max(row["idle"] for row in found.rows) * 100
        targets.append(("idle < 0.05 % of a core", f"{worst:.3f} % (worst of the rows)", worst < 0.05))
    targets += crowd.targets(found.sockets) if found.sockets else []
    targets += processes.targets(found.by_process) if found.by_process else []
    targets += tracked.targets(found.connections) if found.connections else []
    targets += packets.targets(found.streams) if found.streams else []
    targets += storm.targets(found.storms) + (storm.clean_targets(found.clean) if found.clean else [])
    return targets + (identity.targets(found.names[-1]) if found.names else [])


def ratio(row):
    return collection(row, "low") * 1e3 / (row["floor"] * row["n"])


def collection(row, which="fresh"):
    """A scrape that collects, less one that does not: milliseconds of CPU."""
    return row[which]["cpu"] - row["cached"]["cpu"]


def table(head, rows):
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)] + rows
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def render(found, commit):
    rows = found.rows
    main_table = table(
        ["namespaces", "floor", "collection, low overhead", "ratio", "with TCP sockets", "collection + scrape after 0.5 s", "cached scrape, CPU", "p50 / max", "gzip, CPU",
         "memory now / most", "series", "size / gzip", "idle"],
        [[
            str(row["n"]),
            f"{row['floor'] * row['n'] / 1e3:.2f} ms",
            f"{collection(row, 'low'):.2f} ms",
            f"{ratio(row):.2f}",
            f"{collection(row):.2f} ms",
            f"{row['cold']['cpu']:.2f} ms",
            f"{row['cached']['cpu']:.2f} ms",
            f"{row['cached']['p50']:.1f} / {row['cached']['max']:.1f} ms",
            f"{row['gzip']['cpu']:.2f} ms",
            f"{row['memory'][0]:.1f} / {row['memory'][1]:.1f} MiB",
            f"{row['fresh']['series']:,}",
            f"{row['fresh']['bytes'] / 1e3:,.0f} / {row['gzip']['bytes'] / 1e3:,.0f} kB",
            f"{row['idle'] * 100:.3f} %",
        ] for row in rows],
    )
    floor_table = table(
        ["namespaces", "files and netlink", "6 files: open, read to the end, close", "5 files: openat from a kept directory, one read, close"],
        [[str(row["n"]), f"{row['floor']:.1f} us", f"{row['floor6']:.1f} us", f"{row['floor5']:.1f} us"] for row in rows],
    )
    names_table = table(identity.HEAD, [identity.table_row(row) for row in found.names])
    socket_table = table(crowd.HEAD, crowd.table_rows(found.sockets)) if found.sockets else "Not measured."
    process_table = table(processes.HEAD, processes.table_rows(found.by_process)) if found.by_process else "Not measured."
    packets_table = table(packets.HEAD, packets.table_rows(found.streams)) if found.streams else "Not measured."
    tracked_table = table(tracked.HEAD, tracked.table_rows(found.connections)) if found.connections else "Not measured."
    storm_table = table(storm.HEAD, storm.table_rows(found.storms)) if found.storms else "Not measured."
    program_table = table(programs.HEAD, programs.table_rows(found.programs)) if found.programs else "Not measured: no program ran."
    tool_table = table(programs.TOOL_HEAD, programs.tool_rows(found.tools)) if found.tools else "Not measured."
    target_table = table(["target", "measured", "met"], [[t, m, "yes" if met else "**no**"] for t, m, met in verdict(found)])
    return f"""# Benchmarks

Written by `make bench`; do not edit. {datetime.date.today()}, commit {commit}.
{machine()}

## Targets

{target_table}

## One collection

{main_table}

CPU times are scheduler time of all threads of netskoopd, mean of the scrapes, background subtracted; latency is what a client
on a kept loopback connection sees. "Collection": scrapes one after the other that all collect, less the cost of a cached one,
as the floor program reads one round after the other. "After 0.5 s": the same with a pause before each, in which other programs
take the caches: what a real scrape pays; the floor has no such figure. "Cached": all scrapes share one collection. "Idle": {IDLE_SECONDS:.0f} s without a scrape. Default configuration otherwise,
and the environment of the unit ({" ".join(f"{key}={value}" for key, value in UNIT.items())}).
"Low overhead": the probe tcpsummary is off, which asks the kernel for the TCP sockets of each namespace; "with TCP sockets": it is on, as
it is by default.

## The floor

`tests/bench/floor/floor.c` does nothing but read, CPU per namespace:

{floor_table}

The ratio compares with the first column: the files that the default probes of low overhead read ({", ".join(FILES)}), each opened by
its path and read until end of file, which is one read more than a reader needs that knows how the file ends; and queueing disciplines
and connection tracking, for each of which the namespace is entered, a socket opened and asked, and left. The second column is the
files alone, the third the cheaper way with other files (snmp, netstat, dev, sockstat, softnet_stat): it has no snmp6 and no sockstat6.

## Names

{names_table}

A containerd that `tests/cases/bench_runtime.rs` plays behind a real socket knows the namespaces as pods, each a sandbox and a
container with labels and a specification of 10 kB; a node with 1000 pods has 2000 of these. "Start": CPU of the daemon's first
{identity.SETTLED} s without and with that runtime. "Full resync": CPU after the connection broke, with the new one and the whole list, the
worst of {identity.RESYNCS}. "New pod": {identity.PODS} pods one after the other, each a new namespace below `/run/netns`, then both
containers' events and processes in cgroups of their own; CPU until nothing is looked at again, in the median of {identity.GROUPS} groups.
"Pod that goes": the mean, with the scans that follow. "Named after": from the event that
tells of the sandbox to the pod's name in the status, which is asked for every 2 ms, in a run of its own; the pod's processes
are made in that time. "Memory": resident with the runtime less without.

## TCP sockets

{socket_table}

Established sockets in one namespace, both ends of connections over its loopback. "Bare loop": `tests/bench/floor/sockets.c`
asks the kernel for the same list and receives it, and looks at nothing. "Probe": CPU of the source in a collection for this
probe alone, with the namespaces of the node and of the sockets. Both in turn, medians of {crowd.ROUNDS - 2}. Per socket: less the first row, which is
mostly the kernel's walk through its table of all namespaces. "Memory": the most the daemon had resident.

## Processes

{process_table}

The CPU of the source in a collection for one probe alone, and of `tests/bench/floor/processes.c`, which lists all processes of
the machine, reads in which namespace each is (fd: each that has descriptors, whose number one call tells), or the file of
each thread that has its own numbers (io, cpu), and looks at nothing. In turn, medians of {processes.ROUNDS - 2}. Descriptors without
the option that counts sockets among them, which takes a call for each descriptor.

## Tracked connections

{tracked_table}

In one namespace, asked for in a collection for this probe alone, medians of {tracked.ROUNDS - 2}.

## eBPF programs

{program_table}

From `kernel.bpf_stats_enabled`, which is on only for this measurement and includes the cost of the kernel's own time stamps:
refused connections, datagrams to a closed port, the streams of the next table, questions to a name server, short connections,
some that are never answered, writes to the disk. "Instructions verified": how many the kernel's verifier walked through. Other
tools under the same traffic, all their programs together:

{tool_table}

{packets_table}

UDP: CPU time for each of {packets.DATAGRAMS:,} datagrams of 64 bytes that one process sends and receives. TCP: {packets.KIB // 1024} MiB from one process to
another, in packets as large as they come, which are not cut. Through a veth pair between two namespaces; the fastest of {packets.ROUNDS}
rounds, in which all take turns. "Programs that do nothing" are at all hooks that the programs of the three probes have here: what
being called costs, before anything is done.

## Storms of drops

{storm_table}

`tests/bench/floor/drops.c` sends as fast as it can what the kernel drops; CPU time of the sender for each packet, which includes
all that the packet costs, without the probes and with them, events with stacks, at the default limits. The fastest of {storm.ROUNDS} rounds
of {storm.PACKETS:,} packets for each sender, in which both take turns. "Dropped": what the namespace's own counters say (RcvbufErrors; OutRsts, and two drops for
each reset: the segment and its answer, three events for each packet, which therefore have no target); "counted": the same reason in the probes' metrics, resets included. "Seen" are events of
the whole machine, and "lost" is what the ring had no room for, or came while the program ran already.

## Method

Namespaces with one process and one veth pair each, inside a network and mount namespace of the benchmark's own; the floor
program and netskoopd run one after the other on the same namespaces. To repeat: `make bench`, or `N="1 10 100" make bench`.
"""


def machine():
    cpu = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    memory = int(re.search(r"MemTotal:\s+(\d+)", pathlib.Path("/proc/meminfo").read_text()).group(1)) / 2**20
    name = cpu.group(1) if cpu else os.uname().machine
    return (f"{os.cpu_count()} CPUs ({name}), {memory:.0f} GiB, Linux {os.uname().release}, load {os.getloadavg()[0]:.1f} at the end.\n"
            f"What slows down each call and return of the kernel, and so its hooks: {'; '.join(mitigations()) or 'not known'}.")


def mitigations():
    """What the kernel does against attacks by speculation, which costs several times as much on one kind of CPU as on another."""
    for name in ("retbleed", "spec_rstack_overflow", "spectre_v2"):
        with contextlib.suppress(OSError):
            text = pathlib.Path("/sys/devices/system/cpu/vulnerabilities", name).read_text().strip()
            yield f"{name} ({text.partition(';')[0]})"


def run(*command, env=None):
    """Runs a command; what it printed. Output of a failed one is shown."""
    done = subprocess.run([str(word) for word in command], env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL,
                          capture_output=True, text=True)
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout, f"{done.stdout}{done.stderr}")
    return done.stdout


def note(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except subprocess.CalledProcessError as error:
        sys.exit(f"{' '.join(map(str, error.cmd))} ended with {error.returncode}:\n{error.stderr}")
    except RuntimeError as error:
        sys.exit(str(error))
