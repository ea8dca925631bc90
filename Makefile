# Every goal does its own set-up: a virtual environment in .venv, and the system packages in .ci/packages where root or sudo is there.
VENV   := .venv
PYTHON := $(VENV)/bin/python
READY  := $(VENV)/.ready
PEERS  := $(VENV)/.ready-bench
CC_SET := $(VENV)/.ready-compile
FUZZER := $(VENV)/.ready-fuzz
SEEDS  ?= 5000
OPTIMISE ?= 2
SECONDS ?= 600

.PHONY: help demo bytecode test test-nodes test-nodes-a-i test-nodes-j-z test-stack test-rest lint bench sim compile fuzz clean
help:
	@echo 'make demo         three machines become one, shown with real commands (under 2 minutes)'
	@echo 'make test         all tests'
	@echo 'make lint         formatting, lint and types'
	@echo 'make sim SEEDS=N  whole nodes in virtual time over N seeds'
	@echo 'make compile      compile the hot modules, which io-pkt then uses (QNETPY_COMPILED=off: not)'
	@echo 'make fuzz SECONDS=N  look for bytes that break a parser or a machine'
	@echo 'make bench        our figures beside the peers'"'"' of the same run'
	@echo 'make clean        remove the virtual environment and caches'

$(READY): pyproject.toml .ci/prepare .ci/packages
	@.ci/prepare $(VENV)

demo: $(READY) bytecode
	@$(PYTHON) -m qnetpy.cluster.demo

# The nodes of a cluster see this tree read-only: each of their programs would compile all that it imports again.
bytecode: $(READY)
	@$(PYTHON) -m compileall -q resmgr stack qnetpy

# Parts beside each other, since machines in namespaces and bridges that converge mostly wait. `make test-nodes`, `test-stack` or `test-rest` runs one.
# Those of whole nodes take the longest and wait the most: two halves by the first letters of their files.
test: $(READY) bytecode
	@$(MAKE) -s -j4 --output-sync=target test-nodes-a-i test-nodes-j-z test-rest test-stack

test-nodes: $(READY) bytecode
	@$(MAKE) -s -j2 --output-sync=target test-nodes-a-i test-nodes-j-z

test-nodes-a-i: $(READY) bytecode
	@$(PYTHON) -m pytest -q --ignore-glob '*/cluster/test_[j-z]*' tests/cluster

test-nodes-j-z: $(READY) bytecode
	@$(PYTHON) -m pytest -q --ignore-glob '*/cluster/test_[a-i]*' tests/cluster

test-stack: $(READY) bytecode
	@$(PYTHON) -m pytest -q tests/stack

test-rest: $(READY) bytecode
	@$(PYTHON) -m pytest -q --ignore tests/cluster --ignore tests/stack $(REST)

lint: $(READY)
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/mypy

sim: $(READY)
	@SEEDS=$(SEEDS) $(PYTHON) -m pytest -q -m sim

$(FUZZER): pyproject.toml $(READY)
	@$(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]["fuzz"], sep="\n")' | \
	  xargs $(PYTHON) -m pip install -q --disable-pip-version-check
	@touch $@

fuzz: $(FUZZER)
	@$(PYTHON) tests/fuzz/run.py $(SECONDS)

$(PEERS): pyproject.toml .ci/prepare .ci/packages .ci/packages-bench
	@.ci/prepare $(VENV) $(PEERS) .ci/packages-bench

bench: $(PEERS)
	@$(PYTHON) -m qnetpy.cli.main bench

$(CC_SET): pyproject.toml .ci/prepare .ci/packages .ci/packages-compile
	@.ci/prepare $(VENV) $(CC_SET) .ci/packages-compile

compile: $(CC_SET)
	@$(PYTHON) .ci/compile.py --optimise $(OPTIMISE)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .fuzz build *.egg-info
