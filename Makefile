# The commands of roomcast. Each installs the tools that it needs and that are
# missing. `npm run dev|build|test|deploy|types` do the same without make.

# $(call given,NAME,DEFAULT): the value of NAME on make's command line. The
# environment does not count: login shells set USER, and hosts set PORT.
given = $(if $(filter command,$(firstword $(origin $1))),$($1),$2)

port := $(call given,PORT,8787)
env := $(call given,ENV)

# The tools of package.json, Node 22 among them, come first.
export PATH := $(CURDIR)/node_modules/.bin:$(PATH)
export WRANGLER_SEND_METRICS = false

.PHONY: help dev test conformance token build lint bench replay chaos limits overload fuzz audit deploy clean

help:
	@echo "make dev          serve on http://localhost:8787 (PORT=8788)"
	@echo "make test         run all tests: core, end to end on workerd, browser, other clients"
	@echo "make token        print a token: USER_ID=alice ROOMS='a b*' TTL=1h ROLE=service"
	@echo "make build        build the Worker that is deployed, into build/release"
	@echo "make deploy       build and deploy to Cloudflare (ENV=staging, DEPLOY=--dry-run)"
	@echo "make lint         check formatting and run clippy"
	@echo "make conformance  serve an echo on the Socket.IO layers, for protocol suites (PORT=)"
	@echo "make bench        compare the speed with alternatives (BENCH='--only 100x16'),"
	@echo "                  or with another build (BASELINE=its folder)"
	@echo "make replay       replay a chat log in real rooms and verify the result"
	@echo "make chaos        inject failures, then verify that nothing is lost (ROUNDS=10 SEED=)"
	@echo "make limits       measure what hostile and large clients do to others, with 64 MiB"
	@echo "                  of memory (LIMITS='--only flood', LIMITS=--list)"
	@echo "make overload     measure three times the load of a room, and hostile clients"
	@echo "make fuzz         fuzz everything that reads input (FUZZ_SECONDS= FUZZ_TARGETS=)"
	@echo "make audit        check licences, sources and known vulnerabilities of dependencies"
	@echo "make clean        remove builds and local storage"

tools:
	@scripts/tools

.dev.vars: .dev.vars.example
	@test -f $@ || cp $< $@
	@touch $@

dev:
	@scripts/dev --port $(port)

test:
	@scripts/test

# The times are short, so that a protocol suite runs fast.
conformance: tools .dev.vars
	@scripts/port $(port)
	@ROOMCAST_FLAVOUR=conformance exec wrangler dev build/conformance/index.js --port $(port) \
		--inspector-port 0 --persist-to .wrangler/conformance --var PING_INTERVAL_MS:300 \
		--var PING_TIMEOUT_MS:200 --var CONNECT_TIMEOUT_MS:1000 --var MAX_PAYLOAD:1000000

token: .dev.vars
	@scripts/tools npm
	@node scripts/token.mjs --user '$(call given,USER_ID,$(call given,USER,alice))' \
		--ttl '$(call given,TTL,1h)' --rooms '$(call given,ROOMS)' --role '$(call given,ROLE)'

build: tools
	@scripts/build release

lint: tools
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy --target wasm32-unknown-unknown --features dev-tokens -- -D warnings
	cargo clippy --target wasm32-unknown-unknown --features failpoints -- -D warnings
	cargo clippy --target wasm32-unknown-unknown --features conformance -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

# With BASELINE=DIR, the folder of another build, the two builds are compared.
BASELINE ?=

bench: tools build
	@[ -n "$(BASELINE)" ] || command -v redis-server >/dev/null || scripts/debian redis-server
	@node bench/module.mjs
	cargo run --release -p roomcast-bench -- run $(if $(BASELINE),--baseline $(BASELINE)) $(BENCH)

# The log spans hours. `REPLAY="--speed 600"` replays it 600 times as fast.
REPLAY ?= --max-speed

replay: tools build
	cargo run --release -p roomcast-bench -- replay $(REPLAY)

# The same SEED gives the same failures.
ROUNDS ?= 10
SEED ?=

# `make chaos FLAVOUR=limits` runs with 64 MiB of memory.
FLAVOUR ?= failpoints

chaos: tools build
	cargo run --release -p roomcast-bench -- chaos --rounds $(ROUNDS) $(if $(SEED),--seed $(SEED)) \
		--build $(FLAVOUR)

# Each target runs for FUZZ_SECONDS: `make fuzz FUZZ_SECONDS=60 FUZZ_TARGETS="native tokens"`.
FUZZ_SECONDS ?= 600
FUZZ_TARGETS ?=

fuzz:
	@scripts/fuzz $(FUZZ_SECONDS) $(FUZZ_TARGETS)

# The storage of the servers is in memory if the machine allows it: a local workerd waits for the
# disk on the thread that runs all objects, and the platform does not.
memory := $(firstword $(wildcard /dev/shm) /tmp)

limits: tools
	@scripts/build limits
	TMPDIR=$(memory) cargo run --release -p roomcast-bench -- limits $(LIMITS)

overload: tools build
	cargo run --release -p roomcast-bench -- overload

audit:
	@scripts/audit

deploy:
	@scripts/deploy $(if $(env),--env $(env)) $(DEPLOY)

clean:
	rm -rf target fuzz/target build .wrangler
