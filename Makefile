# Every target keeps its environment in .venv/, so .venv/bin/combiner is the command.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

PYTHON ?= python3
HOST ?= 127.0.0.1
DATA ?= data
MINUTES ?= 5
STACKS ?= 2
SEED ?= 1
# Relative paths only: the checkout may be in a directory with spaces in its name.
BIN := .venv/bin
STAMP := .venv/.installed
PROTOS := fedcombiner/wire/pb/fedn.proto $(addprefix fedcombiner/wire/pb/combiner/v1/,combiner.proto events.proto tokens.proto upkeep.proto)
PB := fedcombiner/wire/pb

COMPOSE := docker compose -f deploy/docker-compose.yml
DEMO := $(COMPOSE) -f deploy/compose.demo.yml

.PHONY: help setup run serve test fuzz lint types imports proto proto-check api metrics chart lock faults faults-core drains soak siege siege-short mutations interop bench images up demo-up down token logs e2e e2e-k8s clean ci

help: ## show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  \033[1mmake %-12s\033[0m %s\n", $$1, $$2}' Makefile

setup: $(STAMP) ## make .venv/ with everything that the other targets need

$(STAMP): pyproject.toml requirements/dev.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; say PYTHON=python3.11 make ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $(STAMP)

run: $(STAMP) ## train a real model: the stack, ten clients and ten rounds, on this machine
	@$(BIN)/combiner demo

serve: $(STAMP) ## the stack in the foreground for real clients (HOST=127.0.0.1 DATA=data)
	@$(BIN)/combiner serve --host $(HOST) --data "$(DATA)"

test: $(STAMP) ## all tests that need nothing but Python, three files at a time
	@$(BIN)/python -m pytest -n 3 --dist loadfile

fuzz: $(STAMP) ## random and damaged messages to every rpc, archives to the decoder (MINUTES=5)
	@FUZZ_MINUTES=$(MINUTES) $(BIN)/python -m pytest tests/fuzz --timeout=0

lint: $(STAMP) ## ruff: rules and format; hadolint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/hadolint deploy/Dockerfile

types: $(STAMP) ## mypy --strict
	$(BIN)/mypy

imports: $(STAMP) ## who may import whom
	$(BIN)/lint-imports

proto: $(STAMP) ## generate the stubs from proto/
	$(BIN)/python -m grpc_tools.protoc -I$(PB)=proto --python_out=. --grpc_python_out=. --mypy_out=quiet:. --mypy_grpc_out=quiet:. \
	  --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc $(PROTOS)

proto-check: proto ## the checked-in stubs are what proto/ says
	@git diff --exit-code --stat -- $(PB) || { echo "the stubs are not current: run make proto and commit"; exit 1; }

api: $(STAMP) ## write docs/api.md from the docstrings
	$(BIN)/python -m tools.api_page

metrics: $(STAMP) ## write docs/metrics.md from what the services answer, and the dashboards
	@$(BIN)/python -m tools.metrics_page
	@$(BIN)/python -m deploy.grafana.make_dashboards

chart: $(STAMP) ## write the settings into the chart's schema, and its README.md
	@$(BIN)/python -m tools.chart_page

lock: $(STAMP) ## pin requirements/*.lock anew
	$(BIN)/uv pip compile --quiet --no-emit-index-url --universal --extra standalone --extra certs --extra minio --extra storage-setup pyproject.toml -o requirements/runtime.lock
	$(BIN)/uv pip compile --quiet --no-emit-index-url --universal --extra dev pyproject.toml -o requirements/dev.lock
	for fedn in tests/interop/requirements/*.in; do \
	  $(BIN)/uv pip compile --quiet --no-emit-index-url --no-annotate --python-version 3.11 $$fedn -o $${fedn%.in}.txt; done

faults: $(STAMP) ## pull the plug at every step (STACKS=2; NOTES=FILE to stop and go on): docs/faults.md
	$(BIN)/python -m tests.faults.matrix --stacks $(STACKS) $(if $(NOTES),--notes $(NOTES)) --write docs/faults.md

faults-core: $(STAMP) ## the part of it for every change (8 min)
	$(BIN)/python -m tests.faults.matrix --stacks $(STACKS) --part core

drains: DRAINS = 200
drains: $(STAMP) ## stop replicas in mid-round, through HAProxy: no call fails, no stream is reset (DRAINS=200, 20 min)
	$(BIN)/python -m tests.faults.drains --drains $(DRAINS)

interop: $(STAMP) ## FEDn's own clients, five releases from PyPI, on the stack (10 min): docs/interop.md
	$(BIN)/python -m tests.interop.run --write docs/interop.md

soak: MINUTES = 60
soak: $(STAMP) ## random faults for a long time (MINUTES=60 SEED=1)
	$(BIN)/python -m tests.faults.soak --minutes $(MINUTES) --seed $(SEED)

siege: MINUTES = 10
siege: $(STAMP) ## two attackers against the stack, twice (MINUTES=10 each): docs/siege.md
	$(BIN)/python -m tests.siege.run --minutes $(MINUTES) --write docs/siege.md

siege-short: $(STAMP) ## each attack once: all rounds end, and no process dies (3 min)
	$(BIN)/python -m tests.siege.run --short

mutations: $(STAMP) ## do the fault tests notice? three mutations that must make them red
	$(BIN)/python -m tests.faults.mutations

bench: $(STAMP) ## measure rounds and transfers on this machine, with ratios in one run
	$(BIN)/python -m benchmarks.transfer
	$(BIN)/python -m benchmarks.rounds --clients 10 40 --arrival one-by-one
	$(BIN)/python -m benchmarks.rounds --clients 10 40 --arrival together
	$(BIN)/python -m benchmarks.rounds --clients 300 --elements 300 --arrival together
	$(BIN)/python -m benchmarks.start_latency
	$(BIN)/python -m benchmarks.connected
	$(BIN)/python -m benchmarks.redis_memory

images: ## build the images (DOCKER_BUILD_FLAGS goes to docker build)
	@$(PYTHON) deploy/build_images.py deploy/docker-compose.yml deploy/compose.demo.yml

up: images ## the stack in containers; what can be set is in deploy/.env
	@$(COMPOSE) up --detach --no-build --wait || exec $(PYTHON) deploy/say_why.py deploy/docker-compose.yml
	@$(COMPOSE) ps --format 'table {{.Service}}\t{{.Status}}\t{{.Ports}}'

demo-up: images ## the stack and ten clients in containers; fails if the model is bad
	$(DEMO) up --detach --no-build
	@$(DEMO) logs --no-log-prefix --follow demo; $(DEMO) wait demo >/dev/null

down: ## stop the containers; the volumes stay
	$(DEMO) --profile '*' down --remove-orphans

token: ## print the operator's token: export COMBINER_TOKEN=$$(make -s token)
	@$(COMPOSE) exec -T combiner-1 cat /secrets/operator-token

logs: ## what the containers say; our services one JSON line an event
	@$(COMPOSE) logs --no-log-prefix --follow --tail 100

e2e: $(STAMP) images ## the end-to-end suite against containers of its own
	@$(BIN)/python -m pytest tests/e2e --stack=compose

# Of the offline cluster, kind or k3d: a command that copies the images named behind it into the cluster.
K8S_LOAD ?=
e2e-k8s: export IMAGE_TAG ?= $(shell sed -n 's/^IMAGE_TAG=//p' deploy/.env)
e2e-k8s: export PREVIOUS_TAG ?= $(IMAGE_TAG)-previous
e2e-k8s: $(STAMP) $(if $(K8S_LOAD),images) ## the chart on the cluster that KUBECONFIG names (K8S_LOAD="kind load docker-image")
	@$(if $(K8S_LOAD),$(PYTHON) deploy/load_images.py $(K8S_LOAD))
	@$(BIN)/python -m pytest tests/e2e_k8s --cluster

ci: ## everything that must hold
	@bash .ci/run

clean: ## remove the environment and everything that was made
	rm -rf .venv build dist out data benchmarks/results .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
