"""What names cost: a large containerd behind a real socket (tests/cases/bench_runtime.rs), whose pods are the namespaces
that the benchmark made, and pods that come and go among them."""

import contextlib
import ctypes
import http.client
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

SOCKET = "/run/netskoop/netskoopd.sock"
# Pods that are started one after the other, for the cost and for the time.
PODS = int(os.environ.get("PODS", "100"))
RESYNCS = 5
# The pods come in groups, of which the median counts.
GROUPS = 3
# After this nothing is looked at again because of something that happened before.
SETTLED = 7
CLONE_NEWNET = 0x40000000
libc = ctypes.CDLL(None, use_errno=True)


class Runtime:
    """The fake containerd. Answers carry the moment at which it did what it was told."""

    def __init__(self, program):
        self.child = subprocess.Popen(
            [program, "--exact", "bench_runtime::serve", "--ignored", "--nocapture", "--test-threads=1"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "NETSKOOP_BENCH_RUNTIME": "1"})
        self.socket = self.answer("socket")

    def answer(self, word):
        for line in self.child.stdout:
            if line.startswith(word + " "):
                return line.split()[1]
        raise RuntimeError(f"the fake runtime ended with {self.child.wait()}")

    def tell(self, *words):
        self.child.stdin.write(" ".join(map(str, words)) + "\n")
        self.child.stdin.flush()
        return float(self.answer("done"))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.child.stdin.close()
        self.child.wait(10)


class Pod:
    """A new pod as it comes into being on a node: first the namespace, at last the processes, each in a cgroup of its own."""

    def __init__(self, number, cgroups):
        self.number, self.name, self.file = number, f"cni-{number}", pathlib.Path(f"/run/netns/cni-{number}")
        self.cgroup = cgroups / f"pod{number}" if cgroups else None
        self.processes = []
        make_namespace(self.file)

    def process(self, id):
        """A process of the container with this id; its pid."""
        cgroup = None
        if self.cgroup:
            cgroup = self.cgroup / f"cri-containerd-{id}.scope"
            cgroup.mkdir(parents=True)
        pid = os.fork()
        if pid == 0:
            # As runc does: into the cgroup, into the namespace, and then another program.
            try:
                if cgroup:
                    (cgroup / "cgroup.procs").write_text(str(os.getpid()))
                enter(self.file)
                os.execvp("sleep", ["sleep", "1000000"])
            finally:
                os._exit(1)
        self.processes.append(pid)
        # It is where it belongs when it is another program.
        while pathlib.Path(f"/proc/{pid}/comm").read_text() != "sleep\n":
            time.sleep(0.0005)
        return pid

    def remove(self, runtime):
        for pid in self.processes:
            os.kill(pid, signal.SIGKILL)
        for pid in self.processes:
            os.waitpid(pid, 0)
        libc.umount2(os.fsencode(self.file), 2)
        self.file.unlink()
        runtime.tell("remove", self.number)
        if self.cgroup:
            for path in [*self.cgroup.iterdir(), self.cgroup]:
                if path.is_dir():
                    path.rmdir()


def measure(bench, program, n, seconds):
    """All numbers about names with the n namespaces that are there as pods."""
    row = {"n": n}
    pods = [line.split()[:2] for line in (bench.work / "state" / "pods.txt").read_text().splitlines()]
    note(f"{n} pods: without a runtime")
    with bench.running("", '[sources]\ncontainerd = "off"\n') as process:
        row["start without"] = settled(process)
        without = resident(process)
        row["idle without"] = process.idle(seconds)
    with Runtime(program) as runtime:
        for number, (namespace, pid) in enumerate(pods):
            runtime.tell("known", number, namespace, pid)
        note(f"{n} pods: with one")
        with bench.running("", f'[sources]\ncontainerd = ["{runtime.socket}"]\n') as process:
            row["start with"] = settled(process)
            expect(n)
            row["memory"] = [now - before for now, before in zip(resident(process), without)]
            row["idle"] = process.idle(seconds)
            note(f"{n} pods: the connection breaks")
            row["resync"] = resync(process, runtime, row["idle"])
            expect(n)
            row |= arrivals(process, runtime, n, row["idle"])
    return row


def settled(process):
    """CPU time of the start, until nothing is looked at again."""
    time.sleep(SETTLED)
    return process.cpu()


def resident(process):
    """Resident bytes: all, and those that are no file's."""
    status = (process.proc / "status").read_text()
    return [int(re.search(rf"{key}:\s+(\d+)", status).group(1)) * 1024 for key in ("VmRSS", "RssAnon")]


def resync(process, runtime, idle):
    """CPU time of a full list after a lost connection, the worst of some."""
    costs, lists = [], source()["lists"]
    for _ in range(RESYNCS):
        start, began = process.cpu(), time.monotonic()
        runtime.tell("restart")
        # One that worked for so long is tried again at once.
        time.sleep(4)
        costs.append(process.cpu() - start - idle * (time.monotonic() - began))
    told = source()["lists"] - lists
    if told != RESYNCS:
        raise RuntimeError(f"{told} full lists after {RESYNCS} lost connections")
    return max(costs)


def arrivals(process, runtime, n, idle):
    """Pods that start among the others: CPU time of each, to its settled name and to the end; time to its name."""
    note(f"{n} pods: {PODS} more, one after the other")
    # Those before have settled.
    time.sleep(SETTLED)
    with cgroups() as place:
        new, costs = [], []
        for group in range(GROUPS):
            start, began = process.cpu(), time.monotonic()
            for number in range(n + len(new), n + PODS * (group + 1) // GROUPS):
                new.append(arrive(runtime, number, place)[0])
                time.sleep(0.05)
            time.sleep(SETTLED)
            costs.append(process.cpu() - start - idle * (time.monotonic() - began))
        expect(n + PODS)
        # The scan of everything, once a minute, is in one of them.
        cost = sorted(costs)[(GROUPS - 1) // 2] * GROUPS
        start, began = process.cpu(), time.monotonic()
        for pod in new:
            pod.remove(runtime)
            time.sleep(0.05)
        time.sleep(SETTLED)
        gone = process.cpu() - start - idle * (time.monotonic() - began)
        expect(n)
        note(f"{n} pods: {PODS} more, each waited for")
        times, connection = [], control()
        for number in range(n + PODS, n + 2 * PODS):
            pod, created = arrive(runtime, number, place)
            while count(connection) <= n:
                if time.monotonic() - created > 10:
                    raise RuntimeError(f"pod {number} has no name after 10 s")
                time.sleep(0.002)
            times.append(time.monotonic() - created)
            pod.remove(runtime)
            while count(connection) > n:
                time.sleep(0.002)
        times.sort()
    return {
        "pod": cost / PODS,
        "gone": gone / PODS,
        "p50": times[len(times) // 2],
        "p99": times[len(times) * 99 // 100],
        "cgroups": place is not None,
    }


def arrive(runtime, number, place):
    """A new pod, told of in containerd's order; with the moment at which it was told of first."""
    pod = Pod(number, place)
    created = runtime.tell("create", number, pod.name)
    runtime.tell("start", number, pod.process(identifier(number, True)))
    runtime.tell("join", number, pod.process(identifier(number, False)))
    return pod, created


def identifier(number, is_sandbox):
    """What the fake runtime calls a container."""
    number = 2 * number + is_sandbox
    return f"{number * 0x9e3779b97f4a7c15f39cc0605cedc835 % 2**128:032x}{number:032x}"


@contextlib.contextmanager
def cgroups():
    """A place for the containers' cgroups, gone at the end; nothing where there is no cgroup2."""
    mounts = (line.split() for line in pathlib.Path("/proc/mounts").read_text().splitlines())
    root = next((pathlib.Path(mount[1]) for mount in mounts if mount[2] == "cgroup2"), None)
    if root is None:
        yield None
        return
    place = root / f"netskoop-bench-{os.getpid()}"
    place.mkdir()
    try:
        yield place
    finally:
        # Also what an error left behind.
        for path in sorted(place.rglob("*"), reverse=True):
            if path.is_dir():
                for pid in (path / "cgroup.procs").read_text().split():
                    os.kill(int(pid), signal.SIGKILL)
                    with contextlib.suppress(ChildProcessError):
                        os.waitpid(int(pid), 0)
                path.rmdir()
        place.rmdir()


def make_namespace(file):
    """A new namespace with this name, as a network plug-in makes it."""
    file.touch()
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        checked(libc.unshare(CLONE_NEWNET))
        try:
            checked(libc.mount(b"/proc/thread-self/ns/net", os.fsencode(file), b"", 4096, None))
        finally:
            checked(libc.setns(home, CLONE_NEWNET))
    finally:
        os.close(home)


def enter(file):
    fd = os.open(file, os.O_RDONLY)
    checked(libc.setns(fd, CLONE_NEWNET))
    os.close(fd)


def checked(result):
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


class Control(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(30)
        self.sock.connect(SOCKET)


def control():
    return Control("netskoopd")


def ask(connection, path):
    connection.request("GET", path)
    return json.loads(connection.getresponse().read())


def note(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


def count(connection):
    """Number of pods that have a name, by what looks at no process: the status."""
    kinds = ask(connection, "/v1/status")["entities"]
    return next((kind["count"] for kind in kinds if kind["kind"] == "pod"), 0)


def table_row(row):
    """The numbers of one row, as they are shown."""
    return [
        str(row["n"]),
        f"{row['start without'] * 1e3:.0f} / {row['start with'] * 1e3:.0f} ms",
        f"{row['resync'] * 1e3:.0f} ms",
        f"{row['pod'] * 1e3:.2f} ms",
        f"{row['gone'] * 1e3:.2f} ms",
        f"{row['p50'] * 1e3:.1f} / {row['p99'] * 1e3:.1f} ms",
        f"{row['memory'][0] / row['n'] / 1024:.2f} / {row['memory'][1] / row['n'] / 1024:.2f} KiB",
        f"{row['idle without'] * 100:.3f} / {row['idle'] * 100:.3f} %",
    ]


HEAD = ["pods", "start without / with", "full resync", "new pod, CPU", "pod that goes, CPU", "named after, p50 / p99",
        "memory of a pod, all / anonymous", "idle without / with"]


def targets(row):
    """The targets of names, and whether they are met."""
    memory = max(row["memory"]) / row["n"] / 1024
    return [
        (f"full resync of {row['n']} pods < 300 ms of CPU", f"{row['resync'] * 1e3:.0f} ms (worst of {RESYNCS})", row["resync"] < 0.3),
        (f"one new pod among {row['n']} < 1 ms of CPU", f"{row['pod'] * 1e3:.2f} ms (of {PODS} in {GROUPS} groups, the median)", row["pod"] < 1e-3),
        ("named < 100 ms after the runtime's event", f"{row['p99'] * 1e3:.0f} ms (p99 of {PODS})", row["p99"] < 0.1),
        ("memory of a pod's names < 4 KiB", f"{memory:.2f} KiB", memory < 4),
        (f"names of {row['n']} pods at rest cost nothing", f"{(row['idle'] - row['idle without']) * 100:+.3f} % of a core",
         row["idle"] - row["idle without"] < 1e-4),
    ]


def source():
    return next(source for source in ask(control(), "/v1/status")["sources"] if source["name"] == "containerd")["counts"]


def expect(n):
    if (found := count(control())) != n:
        raise RuntimeError(f"{found} pods instead of {n}")
