"""What each eBPF program costs, under traffic that makes it run; beside them public tools that look at the same, where they can."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time

import packets

HERE = pathlib.Path(__file__).resolve().parent
# Every object but the one that watches namespaces is a probe's.
PROBES = sorted({path.name.split(".")[0] for path in (HERE.parent.parent / "bpf").glob("*.bpf.c")} - {"netns"})
# What a probe needs to see the traffic here, which goes over the loopback device.
OPTIONS = {"flow": 'devices = ["*"]'}
HEAD = ["program", "runs", "ns per run", "instructions verified"]
# Public tools by the probe that is closest to them; of libbpf-tools 0.26, whose programs are made for BTF as these are.
TOOLS = {
    "tasklatency": ["runqslower", "1000000"],
    "softirq": ["softirqs", "-d", "60"],
    "biolatency": ["biolatency", "60"],
    "tcprtt": ["tcprtt", "-d", "60"],
    "tcpconnect": ["tcpstates"],
    "tcptwrcv": ["tcplife"],
    "tcpreset": ["tcptracer"],
    "listen": ["solisten"],
    "kernellatency": ["tcpconnlat"],
}
TOOL_HEAD = ["tool", "looks at the same as", "runs", "ns per run"]
REFUSED = 20_000
QUESTIONS = 5_000
CONNECTIONS = 2_000
WRITES = 300
LOST = 200
STATS = pathlib.Path("/proc/sys/kernel/bpf_stats_enabled")


def measure(bench, port, note):
    """A row for each program, the probes that cannot run here with the reason, and a row for each tool or why it has none."""
    note("BPF programs under all kinds of traffic")
    probes = "".join(f"[probes.{name}]\nenabled = true\n{OPTIONS.get(name, '')}\n" for name in PROBES)
    try:
        with packets.veth(), bench.running('min_interval = "1ms"', f'{probes}[limits]\nbpf_cpu = "0%"\n') as process:
            with counting():
                before = process.programs()
                traffic(bench, port)
                after = process.programs()
            states = {probe["name"]: probe["state"] for probe in packets.listed(bench)}
            rows = costs(before, after, names(states))
            rows += [(f"{name}: {state['reason']}", None, None, None) for name, state in states.items()
                     if name in PROBES and not state.get("programs")]
        return rows, [tool(bench, probe, *command, note=note) for probe, command in TOOLS.items()]
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        note(f"no BPF numbers: {error}")
        return [], []


@contextlib.contextmanager
def counting():
    STATS.write_text("1")
    try:
        yield
    finally:
        STATS.write_text("0")


def names(states):
    """Names by program id: the kernel's from bpftool, with the probe's."""
    found = {id: name for name, state in states.items() for id in state.get("programs", [])}
    with contextlib.suppress(OSError, ValueError, subprocess.CalledProcessError):
        shown = json.loads(subprocess.run(["bpftool", "-j", "prog", "show"], check=True, capture_output=True, text=True).stdout)
        full = {program["id"]: program.get("name", "") for program in shown}
        found = {id: f"{full.get(id, '')} ({name})" for id, name in found.items()} | {id: f"{name} (namespaces)" for id, name in full.items() if id not in found}
    return found


def costs(before, after, names):
    rows = []
    for id, (nanos, runs, verified) in sorted(after.items()):
        old = before.get(id, (0, 0, 0))
        nanos, runs = nanos - old[0], runs - old[1]
        name = names.get(id, f"program {id}")
        rows.append((name, runs, nanos / runs if runs else None, verified))
    return sorted(rows, key=lambda row: row[0].rpartition(" ")[::-1])


def traffic(bench, port):
    """Something of everything that has a hook."""
    lose_some()
    refuse(REFUSED)
    packets.send(bench, "udp", packets.DATAGRAMS)
    packets.send(bench, "tcp", packets.KIB)
    ask(QUESTIONS)
    connect(CONNECTIONS)
    write(bench.work / "written", WRITES)
    subprocess.run(["true"], check=True)
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as scrape:
        scrape.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        while scrape.recv(1 << 16):
            pass
    # What was lost is sent again after a second.
    time.sleep(1.5)


def refuse(times):
    """Refused connections and datagrams to a closed port: resets and drops with a reason."""
    closed = ("127.0.0.1", 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        for _ in range(times):
            datagrams.sendto(b"x", closed)
    for _ in range(times):
        with socket.socket() as stream, contextlib.suppress(ConnectionRefusedError):
            stream.connect(closed)


def lose_some():
    """Connections to a neighbour that answers nothing, and datagrams to some that are not there."""
    script = (
        "import socket\n"
        f"kept = [socket.socket() for _ in range({LOST})]\n"
        "for one in kept:\n one.setblocking(False)\n one.connect_ex(('10.98.0.99', 80))\n"
        "with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as to:\n"
        f" for n in range(100, 250): to.sendto(b'x', (f'10.98.0.{{n}}', 80))\n"
        "import time; time.sleep(30)\n"
    )
    silent = ["neigh", "add", "10.98.0.99", "lladdr", "02:00:00:00:00:99", "dev", "p0", "nud", "permanent"]
    subprocess.run(["ip", "-n", packets.SENDER, *silent], check=True)
    child = subprocess.Popen(["ip", "netns", "exec", packets.SENDER, "python3", "-c", script])
    threading.Timer(3, child.kill).start()


def ask(times):
    """Questions to a name server that knows no answer."""
    # An identifier of its own, one question, for "a." of type A and class IN.
    rest = struct.pack(">HHHHH", 0x0100, 1, 0, 0, 0) + b"\1a\0" + struct.pack(">HH", 1, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        server.bind(("127.0.0.1", 53))
        client.connect(("127.0.0.1", 53))
        for n in range(times):
            client.send(struct.pack(">H", n & 0xffff) + rest)
            question, back = server.recvfrom(512)
            # An answer, recursion available, server failure.
            server.sendto(question[:2] + b"\x81\x82" + question[4:], back)
            client.recv(512)


def connect(times):
    """Connections that are accepted and closed, by the client first: it stays in TIME_WAIT."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for _ in range(times):
            with socket.create_connection(listener.getsockname()[:2]) as client:
                accepted = listener.accept()[0]
                client.sendall(b"x")
                accepted.recv(1)
            accepted.close()


def write(path, times):
    """Writes that reach the disk one by one, if there is one below."""
    with open(path, "wb") as file:
        for _ in range(times):
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
    path.unlink()


def tool(bench, probe, name, *words, note):
    """What the programs of a public tool cost under the same traffic, or why there is no such number."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:{os.environ.get('NETSKOOP_TOOLS', '')}")
    if not path:
        return name, probe, "is not installed", None
    note(f"{name} under the same traffic")
    log = bench.work / f"{name}.log"
    with open(log, "w") as output:
        child = subprocess.Popen([path, *words], stdout=subprocess.DEVNULL, stderr=output, stdin=subprocess.DEVNULL)
    try:
        time.sleep(2)
        if child.poll() is not None:
            return name, probe, f"ends at once: {why(log)}", None
        with packets.veth(), counting():
            before = held(child.pid)
            traffic(bench, 9)
            after = held(child.pid)
    finally:
        child.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(3)
        child.kill()
        child.wait()
    nanos, runs = (sum(after[id][at] - before.get(id, (0, 0))[at] for id in after) for at in (0, 1))
    return (name, probe, f"{runs:,}", nanos / runs) if runs else (name, probe, f"its programs do not run here: {why(log)}", None)


def why(log):
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return re.sub(r"[|\s]+", " ", lines[-1]) if lines else "it does not say why"


def held(pid):
    """Run time, runs and verified instructions of the programs that a process holds, by id."""
    found = {}
    for fd in pathlib.Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(OSError):
            info = dict(line.split(":", 1) for line in fd.read_text().splitlines() if ":" in line)
            if "prog_id" in info and "run_cnt" in info:
                numbers = (int(info.get(key, 0)) for key in ("run_time_ns", "run_cnt", "verified_insns"))
                found[int(info["prog_id"])] = tuple(numbers)
    return found


def table_rows(rows):
    def row(name, runs, ns, verified):
        if runs is None:
            return [name, "-", "-", "-"]
        return [name, f"{runs:,}", f"{ns:.0f}" if runs else "-", f"{verified:,}"]

    return [row(*found) for found in rows]


def tool_rows(rows):
    return [[name, probe, runs, f"{ns:.0f}" if ns else "-"] for name, probe, runs, ns in rows]
