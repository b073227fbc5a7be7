#!/bin/bash
# What package.sh has a kernel of the lab do, as an operator would.
set -euo pipefail

wrong() {
	echo "$*"
	systemctl status --no-pager netskoopd || true
	netskoopctl probes list || true
	exit 1
}

# Modules that are in use on most nodes, since the daemon loads none, and a default route for the probe flow.
modprobe -a sch_ingress cls_bpf tcp_diag nf_conntrack_netlink
ip link add up0 type dummy && ip link set up0 up && ip route add default dev up0

dpkg -i /netskoop.deb >/dev/null
systemctl is-active -q netskoopd || wrong "The package does not start the daemon."

# All that this machine has something for, so that each object is loaded with no more rights than the unit gives.
for probe in $(netskoopctl probes list --no-headers | awk '$2 != "n/a" { print $1 }'); do
	netskoopctl probes enable "$probe" >/dev/null || wrong "$probe cannot be enabled."
done
netskoopctl probes list
[ -z "$(netskoopctl probes list --no-headers | awk '$2 == "failed"')" ] || wrong "A probe fails in the sandbox of the unit."

# Without a socket the tracepoint of this kernel says nothing: it is another way that sees this.
for address in 127.0.0.1 ::1; do
	! (: <"/dev/tcp/$address/9") 2>/dev/null || wrong "$address has port 9 open."
done
tries=0
until [ "$(netskoopctl events --type TCPRESET_NOSOCK | grep -c ':9\b')" -ge 2 ]; do
	sleep 0.5
	tries=$((tries + 1))
	[ $tries -lt 60 ] || wrong "No events of the two refused connections: $(netskoopctl events)"
done
netskoopctl events --type TCPRESET_NOSOCK
dpkg -P netskoop >/dev/null
[ -z "$(ls -d /etc/netskoop /run/netskoop /var/lib/netskoop 2>/dev/null)" ] || wrong "Something is left of the package."
