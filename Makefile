# What there is to do with roomcast. `make dev` and `make test` install what
# they need; everything is quick the second time.

# $(call given,NAME,DEFAULT): what the command line of make sets NAME to. The
# environment does not count: login shells set USER, and hosts set PORT.
given = $(if $(filter command,$(firstword $(origin $1))),$($1),$2)

port := $(call given,PORT,8787)

# The tools of package.json, Node 22 among them, come first.
export PATH := $(CURDIR)/node_modules/.bin:$(PATH)
export WRANGLER_SEND_METRICS = false

.PHONY: help dev test conformance token build lint bench replay chaos overload fuzz audit deploy clean

help:
	@echo "make dev      serve on http://localhost:8787 (PORT=)"
	@echo "make test     all tests: core, end to end on workerd, browser"
	@echo "make conformance  an echo on the Socket.IO layers, for protocol suites (PORT=)"
	@echo "make token    print a token: USER_ID=alice ROOMS='a b*' TTL=1h ROLE=service"
	@echo "make build    the Worker as it is deployed, into build/release"
	@echo "make lint     formatting and clippy"
	@echo "make bench    against other ways to do the same, in one run"
	@echo "make replay   a chat log through real rooms, checked at the end"
	@echo "make chaos    kill, cut off, put to sleep; then check that nothing is lost (ROUNDS=)"
	@echo "make fuzz     what comes from outside, at random (FUZZ_SECONDS= FUZZ_TARGETS=)"
	@echo "make overload three times what a room can take, and somebody hostile"
	@echo "make audit    licences, sources and known flaws of what is built in"
	@echo "make deploy   to Cloudflare (npx wrangler deploy)"
	@echo "make clean    forget what was built and stored here"

tools:
	@scripts/tools

.dev.vars: .dev.vars.example
	@test -f $@ || cp $< $@
	@touch $@

dev: tools .dev.vars
	@scripts/port $(port) $@
	@exec wrangler dev --port $(port) --inspector-port 0

test: .dev.vars build
	@scripts/build failpoints
	# Apart, because cargo compiles the crates below xtask again when it is tested
	# along with the others, which use some of them with other features.
	cargo test --package xtask
	cargo test --workspace --exclude xtask
	scripts/client-test

# Short times, so that a protocol suite need not wait.
conformance: tools .dev.vars
	@scripts/port $(port) $@
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

# With BASELINE=DIR, the folder of another build, the two builds are compared.
BASELINE ?=

bench: tools build
	@[ -n "$(BASELINE)" ] || command -v redis-server >/dev/null || scripts/debian redis-server
	@node bench/module.mjs
	cargo run --release -p roomcast-bench -- run $(if $(BASELINE),--baseline $(BASELINE)) $(BENCH)

# The log spans hours; `REPLAY="--speed 600"` keeps its rhythm.
REPLAY ?= --max-speed

replay: tools build
	cargo run --release -p roomcast-bench -- replay $(REPLAY)

# `make chaos ROUNDS=200`; with SEED= the same faults again.
ROUNDS ?= 10
SEED ?=

chaos: tools build
	cargo run --release -p roomcast-bench -- chaos --rounds $(ROUNDS) $(if $(SEED),--seed $(SEED))

# `make fuzz FUZZ_SECONDS=60 FUZZ_TARGETS="native tokens"`; each target so long.
FUZZ_SECONDS ?= 600
FUZZ_TARGETS ?=

fuzz:
	@scripts/fuzz $(FUZZ_SECONDS) $(FUZZ_TARGETS)

overload: tools build
	cargo run --release -p roomcast-bench -- overload

audit:
	@scripts/audit

deploy: tools
	wrangler deploy

clean:
	rm -rf target fuzz/target build .wrangler
