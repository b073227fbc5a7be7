"""What counting tracked connections costs with few and with many of them in the table."""

import contextlib
import re
import subprocess

import processes

COUNTS = [10, 50_000]
LIMIT = 1.5
ROUNDS = 33
HEAD = ["tracked connections", "probe conntrack, CPU"]
NAMESPACE = "tracked"
RULES = "add table inet t; add chain inet t out { type filter hook output priority 0; }; add rule inet t out ct state new counter"
# A datagram for each entry, to a port and an address of the loopback that no other one goes to.
SEND = """
import socket, sys
to = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for n in range(int(sys.argv[1])):
    try:
        to.sendto(b"x", (f"127.0.{n // 50000}.{1 + n % 50}", 1000 + n // 50 % 1000))
    except OSError:
        to = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
"""


def measure(bench, port, note):
    """A row for each number of entries."""
    rows = []
    for n in COUNTS:
        note(f"{n} tracked connections in a namespace")
        with table(n) as entries, bench.running('min_interval = "1ms"'):
            costs = [(0, processes.spent(port, "conntrack")) for _ in range(ROUNDS)][2:]
            rows.append({"n": entries(), "cost": processes.median(costs)[1]})
    return rows


@contextlib.contextmanager
def table(n):
    """A namespace with so many entries; a function that counts them."""
    inside = ["ip", "netns", "exec", NAMESPACE]
    subprocess.run(["ip", "netns", "add", NAMESPACE], check=True)
    try:
        subprocess.run(["ip", "-n", NAMESPACE, "link", "set", "lo", "up"], check=True)
        subprocess.run([*inside, "nft", RULES], check=True)
        subprocess.run([*inside, "python3", "-c", SEND, str(n)], check=True)

        def entries():
            return int(re.search(r"\d+", subprocess.run([*inside, "conntrack", "-C"], check=True, capture_output=True, text=True).stdout).group())

        yield entries
    finally:
        subprocess.run(["ip", "netns", "del", NAMESPACE], check=True)


def table_rows(rows):
    return [[f"{row['n']:,}", f"{row['cost']:,.0f} us"] for row in rows]


def targets(rows):
    few, many = rows[0], rows[-1]
    ratio = many["cost"] / few["cost"]
    return [(f"conntrack with {many['n']:,} entries ≤ {LIMIT} × with {few['n']}", f"{ratio:.2f} ×", ratio <= LIMIT)]
