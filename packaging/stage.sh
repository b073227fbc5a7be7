#!/bin/bash
# `stage.sh PROGRAMS DIR`: puts everything that both packages contain into DIR, as the packages name it.
set -euo pipefail
cd "$(dirname "$0")/.."

programs=$1
stage=$2
rm -rf "$stage"
mkdir -p "$stage"
install -m 755 "$programs/netskoopd" "$programs/netskoopctl" "$stage/"
install -m 644 packaging/common/netskoopd.toml packaging/common/netskoop.{sysusers,tmpfiles} docs/metrics.md LICENSE "$stage/"
cp -r systemd docs/man packaging/common/completions packaging/common/examples "$stage/"
