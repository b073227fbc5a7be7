#!/bin/bash
# prepare.sh NAME...: makes what these kernels need to be booted, as far as it is not there.
set -euo pipefail
# shellcheck source=tests/vm/lab.sh
. "$(dirname "$0")/lab.sh"

trap end_awaited EXIT
trap 'exit 130' INT TERM HUP
await "$here/image.sh" disk >/dev/null
for name in "$@"; do
	await "$here/kernel.sh" "$name" >/dev/null
done
