# Few targets; README names them. Everything runs as root on Debian 12.
.DEFAULT_GOAL := help
.PHONY: help setup objects collection generate lint test fuzz kills test-vm molecule bench demo demo-down clean

PYTHON := .venv/bin/python
GROUP ?=
EXAMPLES ?= 2000
MINUTES ?= 30

help: ## say what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: ## install what is missing on this machine
	@tools/setup.sh

objects: setup ## compile the eBPF objects, verify them in this kernel, build the agent's artefact
	@$(PYTHON) tools/build_objects.py
	@$(PYTHON) tools/build_agent.py

collection: objects ## put the Ansible collection together: build/collections, and its archive in dist
	@mkdir -p dist
	@$(PYTHON) tools/build_collection.py --archive dist

generate: setup ## write again what is generated from the model
	@$(PYTHON) -m bpfleet.emit
	@tools/pulumi/sdk.sh

lint: setup ## ruff and mypy
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy

test: objects lint ## every test
	@tools/test.sh

fuzz: objects ## many conversations through the programs and the model; EXAMPLES=n, MINUTES=n at most
	@BPFLEET_FUZZ_EXAMPLES=$(EXAMPLES) timeout $(MINUTES)m .venv/bin/pytest -q -x -s tests/packet/test_node.py tests/packet/test_tunnel_dice.py \
		tests/packet/test_sockets_dice.py

kills: objects ## agent, watchdog and both killed at every step of a change, each at each
	@BPFLEET_KILLS=all .venv/bin/pytest -q tests/e2e/test_kills.py

test-vm: objects ## tests on virtual machines, kernels 6.1 and 6.12; the first run builds their images
	@$(PYTHON) -m tools.vm ensure
	@.venv/bin/pytest -q -n 2 --dist loadgroup tests/vm

molecule: objects ## the Ansible role and playbooks on lab hosts, by molecule
	@for scenario in default removal; do PATH="$(CURDIR)/.venv/bin:$$PATH" molecule test -s $$scenario || exit 1; done

bench: objects ## measure; GROUP=name for one group; writes bench/results.json
	@$(PYTHON) -m bench $(GROUP)

demo: objects ## three hosts, two workloads each, provisioned by pulumi up, with traffic
	@$(PYTHON) examples/demo.py

demo-down: ## remove what the demo left up
	@$(PYTHON) -m bpfleet.cli.main lab down

clean: ## remove what was built here
	@rm -rf build dist bench/results.json .mypy_cache .pytest_cache .ruff_cache .hypothesis
