# The commands of this repository; `make` lists them.

CARGO ?= cargo
SERVICES := scripts/with-services
# One profile builds everything that the demo and the tests run.
BINARIES := target/debug
# One set of packages, so one set of features: what the demo builds is not built again for the tests. These do without
# the benchmark and its plots.
BUILD := $(CARGO) build --workspace --exclude bench

# What cargo-fuzz passes to the compiler: libFuzzer sees which edges an input reaches, and what is compared. The target
# is named, so that build scripts and macros, which run while this is built, are not instrumented.
COVERAGE := -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
	-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
	-Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing
HOST = $(shell rustc -vV | sed -n 's/^host: //p')
TARGET ?= change
RUNS ?= 1000000

.DEFAULT_GOAL := help
.PHONY: help demo demo-stop deploy-local test soak fuzz bench lint fmt fixtures day backfill lambda clean

help: ## List the commands
	@awk -F ':[^#]*## ' '/^[a-z-]+:.*## / { printf "%-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## Replay files and streams into a PostgreSQL and an S3 of its own, and show what comes out (KEEP=1 leaves them up)
	@$(BUILD) --quiet --bin backfill --bin stream-server
	@$(SERVICES) $(if $(KEEP),--keep) scripts/demo $(BINARIES)/backfill $(BINARIES)/stream-server

demo-stop: ## Stop what `make demo KEEP=1` left up
	@$(SERVICES) --stop

deploy-local: ## Deploy infra/ on a stand-in of AWS with the real projector, and show what comes of three items
	@$(BUILD) --quiet --bin backfill --bin projector
	@$(SERVICES) --with-sam scripts/deploy-local $(BINARIES)/backfill $(BINARIES)/projector

test: ## Run all tests against real services
	$(BUILD) --all-targets
	$(SERVICES) --with-dynamodb --with-sam --with-pgbouncer --with-kubernetes --with-registry scripts/run-tests

bench: ## Measure, and write docs/bench (by hand; a release build first). QUICK=1: about ten minutes; PART=database: one part
	$(CARGO) build --release -p projector -p backfill -p bench --bin projector --bin backfill --bin bench
	$(SERVICES) --durable --with-peers target/release/bench $(if $(QUICK),--quick) $(PART)

lint: ## Formatting, clippy, documentation links, dependencies, templates, scripts, drawings
	$(CARGO) fmt --all -- --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --document-private-items --quiet
	test -x target/tools/bin/cargo-machete || $(CARGO) install --quiet --locked --root target/tools cargo-machete@0.9.2
	target/tools/bin/cargo-machete
	$(SERVICES) --tools-only cargo-deny --locked check licenses bans sources
	$(SERVICES) --tools-only scripts/lint-templates
	$(SERVICES) --tools-only scripts/lint-scripts
	$(SERVICES) --tools-only node scripts/lint-drawings.mjs

fmt: ## Format the code
	$(CARGO) fmt --all

fixtures: ## Write tests/fixtures anew from their seeds
	$(CARGO) run -p testkit --bin generate-fixtures -- --out tests/fixtures/small --sessions 40 --seed 22 --event
	$(CARGO) run -p testkit --bin generate-fixtures -- --out tests/fixtures/mesh --sessions 1 --seed 7 --mesh-bytes 300000 --well-formed --gzip

day: ## Write a day of 100,000 sessions to target/day
	$(CARGO) run -p testkit --bin generate-fixtures -- --out target/day --sessions 100000 --seed 1

backfill: ## Build the backfill binary for use, with the RDS root certificates beside it, to target/release
	$(CARGO) build --release -p backfill
	test -s target/release/rds-roots.pem || python3 scripts/rds-roots.py target/release/rds-roots.pem

lambda: ## Build the Lambda's zip, with the RDS root certificates, to target/lambda
	scripts/build-lambda

clean: ## Remove what was built
	$(CARGO) clean
