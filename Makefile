# Everything a newcomer needs. Each command installs what it lacks (apt or dnf, as root) and says what it does.
# The work is done by cargo and by the scripts in tests/; this file only names it.

.PHONY: help run test test-kernels test-systemd test-packages lint docs bench deb rpm repo

help: ## List the commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 24

run: ## Build netskoopd (release) and run it in the foreground with built-in defaults
	@tests/run.sh

test: ## Everything that CI runs: formatting, lints, all tests
	@tests/check.sh lint test kernel

test-kernels: ## Every probe in stock Debian kernels, emulated (KERNEL=6.12 for one); writes docs/kernels.md
	@tests/vm/kernels.sh

test-systemd: ## Only what needs a real systemd, booted in a container
	@tests/check.sh systemd

test-packages: ## Both packages, also with dnf: what make test does of them, and the rest
	@tests/check.sh packages

lint: ## Only formatting and lints
	@tests/check.sh lint

docs: ## Write docs/metrics.md and the manual pages anew from the declarations
	@cargo test --quiet -p netskoopd --lib render:: || cargo test --quiet -p netskoopd --lib render::
	@cargo test --quiet -p netskoopctl manual:: || cargo test --quiet -p netskoopctl manual::

deb: ## Build the Debian package (for glibc 2.31 and newer) into target/package/
	@tests/setup.sh package
	@packaging/deb/build.sh

rpm: ## Build the RPM package of the same programs into target/package/
	@tests/setup.sh rpm
	@packaging/rpm/build.sh

repo: deb rpm ## Build both and put them into signed repositories in target/package/repo/
	@packaging/repo.sh $${CARGO_TARGET_DIR:-target}/package/repo $${CARGO_TARGET_DIR:-target}/package/*.deb $${CARGO_TARGET_DIR:-target}/package/*.rpm

bench: ## Measure a collection against the cost of its kernel reads; writes docs/benchmarks.md
	@tests/bench/run.sh
