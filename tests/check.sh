#!/bin/bash
# `check.sh lint test kernel`: what CI runs. Quiet where all is well; the lines of cargo test are shown; a summary at the end.
#
# What cannot run says SKIP and why. With CI=true something that is merely not installed is a failure: tests see
# NETSKOOP_NO_SKIP=1. Tests that skip append "name: reason" to the file $NETSKOOP_SKIPS, because cargo hides the output
# of tests that pass.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
export PATH=$PWD/target/tools/usr/bin:$PATH:${HOME:-/root}/.cargo/bin
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never}

work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
export NETSKOOP_SKIPS=$work/skips
: >"$NETSKOOP_SKIPS"
[ "${CI:-}" != true ] || export NETSKOOP_NO_SKIP=1
failed=()

# step NAME COMMAND...: its output is shown if it fails.
step() {
	local name=$1 start=$SECONDS
	shift
	if "$@" >"$work/log" 2>&1 </dev/null; then
		echo "ok    $name ($((SECONDS - start)) s)"
	else
		cat "$work/log"
		echo "FAIL  $name: $*"
		failed+=("$name")
	fi
}

skip() {
	echo "$1: $2" >>"$NETSKOOP_SKIPS"
}

lint() {
	step "rustfmt" cargo fmt --all --check
	step "clippy" cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
	lint_bpf
	if command -v shellcheck >/dev/null; then
		step "shellcheck" shellcheck --severity=warning -x .ci/run tests/*.sh tests/bench/run.sh tests/vm/*.sh packaging/*.sh packaging/*/*.sh tests/packages/*.sh packaging/deb/netskoop.p*
	else
		skip "shellcheck" "not installed"
	fi
	if command -v cargo-deny >/dev/null; then
		step "cargo deny" cargo deny --offline check bans licenses sources
	else
		skip "cargo deny" "not installed; cargo install cargo-deny"
	fi
	lint_unit
}

# Each release of clang-format has its own opinion; that of Debian 12 counts.
lint_bpf() {
	local sources
	mapfile -t sources < <(find bpf -name vmlinux -prune -o \( -name '*.bpf.c' -o -name '*.h' \) ! -name 'vmlinux*' -print)
	if ! clang-format --version 2>/dev/null | grep -q 'version 14\.'; then
		skip "clang-format" "version 14 is not installed"
	elif [ ${#sources[@]} -gt 0 ]; then
		step "clang-format" clang-format --dry-run -Werror "${sources[@]}"
	fi
}

# The unit names a program that is not installed here; it is checked with one that is.
lint_unit() {
	if ! command -v systemd-analyze >/dev/null; then
		skip "systemd unit" "systemd-analyze is not installed"
		return
	fi
	sed "s,/usr/sbin/netskoopd,$(command -v true)," systemd/netskoopd.service >"$work/netskoopd.service"
	cp systemd/netskoopd.socket "$work/"
	step "systemd unit" unit_is_clean
}

# systemd-analyze warns about unknown settings and still ends with 0.
unit_is_clean() {
	systemd-analyze verify --man=no "$work/netskoopd.service" "$work/netskoopd.socket" >"$work/unit" 2>&1
	# Findings about other units of the machine are none of our business.
	! grep 'netskoopd\.\(service\|socket\)' "$work/unit"
}

# What users install is built, and then installed by the tests.
package() {
	if ! command -v dpkg-buildpackage >/dev/null; then
		skip "make deb" "this is no Debian"
		return
	fi
	step "make deb" packaging/deb/build.sh
}

# The same for dnf, and the tests of both.
packages() {
	local out=${CARGO_TARGET_DIR:-target}/package
	package
	step "make rpm" packaging/rpm/build.sh
	step "reproducible" packaging/reproduce.sh
	step "dnf into a directory" tests/packages/rpm.sh "$out"/netskoop-*.rpm "$out/rpm/stage"
	step "apt and dnf" env NETSKOOP_TEST_RPM=1 cargo test --locked -p netskoopd --test daemon -- packages
}

tests() {
	local start=$SECONDS
	if cargo test --workspace --locked --no-fail-fast 2>"$work/log" </dev/null; then
		echo "ok    cargo test ($((SECONDS - start)) s)"
	else
		# The compiler's messages; what failed in a test is above.
		grep -v -E '^ *(Compiling|Downloaded|Downloading|Finished|Running|Doc-tests) ' "$work/log"
		echo "FAIL  cargo test"
		failed+=("cargo test")
	fi
}

# Only what needs a real systemd.
systemd() {
	step "systemd" cargo test --locked -p netskoopd --test daemon -- systemd::
}

# The package that was built before, under a real systemd.
package_on_kernel() {
	local deb
	for deb in "${CARGO_TARGET_DIR:-target}"/package/netskoop_*.deb; do
		if [ -e "$deb" ]; then
			step "package on kernel $1" tests/vm/package.sh "$1" "$deb"
		else
			skip "package on kernel $1" "there is no package to install; make deb"
		fi
	done
}

# One kernel with kprobes, trampolines and modules, which the machine of CI has not.
kernel() {
	local start=$SECONDS code=0
	tests/vm/kernels.sh 6.1 >"$work/log" 2>&1 </dev/null || code=$?
	if [ $code = 0 ]; then
		echo "ok    kernel 6.1 ($((SECONDS - start)) s)"
		package_on_kernel 6.1
		step "kernel lab" tests/vm/selftest.sh
	elif [ $code = 77 ] && [ "${CI:-}" != true ]; then
		skip "kernel 6.1" "$(tail -1 "$work/log")"
	else
		cat "$work/log"
		echo "FAIL  kernel 6.1"
		failed+=("kernel 6.1")
	fi
}

level="test"
[[ " $* " != *" packages "* ]] || level=packages
tests/setup.sh $level || exit 1
for part in "${@:-lint}"; do
	case $part in
	lint) lint ;;
	test) package; tests ;;
	systemd) systemd ;;
	kernel) kernel ;;
	packages) packages ;;
	*) echo "check.sh knows lint, test, systemd, kernel and packages, not $part" >&2 && exit 2 ;;
	esac
done

sed 's/^/SKIP  /' "$NETSKOOP_SKIPS"
if [ ${#failed[@]} -gt 0 ]; then
	printf 'failed:'
	printf ' [%s]' "${failed[@]}"
	echo
	exit 1
fi
echo "all passed, $(wc -l <"$NETSKOOP_SKIPS") skipped"
