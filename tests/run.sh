#!/bin/bash
# Builds netskoopd and runs it in the foreground with built-in defaults. Arguments go to netskoopd.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:${HOME:-/root}/.cargo/bin
bin=${CARGO_TARGET_DIR:-target}/release

tests/setup.sh build
echo "building netskoopd and netskoopctl; the first time this takes some minutes"
cargo build --release --locked --quiet -p netskoopd -p netskoopctl
cat <<END
netskoopd runs in the foreground; Ctrl-C ends it. In a second shell:
  curl -s localhost:9102/metrics | head
  $bin/netskoopctl status
  $bin/netskoopctl events -f
END
if [ "$(id -u)" = 0 ]; then
	exec "$bin/netskoopd" "$@"
fi
# Other namespaces and BPF are only for root.
exec sudo "$bin/netskoopd" "$@"
