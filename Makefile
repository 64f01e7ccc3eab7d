# One command for each intent; `make help` lists them. Each works from a fresh clone.
SHELL := /bin/bash
PY := .venv/bin/python
SEED ?= 1
TRIALS ?= 100
PAUSE ?= 60
N ?= 20000
JOBS ?= 1
CALLS ?= 2000
STEP ?= 1
FLIPS ?= 2000
MB ?= 2048
START ?= 1
export PYTHONPATH := $(CURDIR)

.PHONY: help env test test-clients check ci format docs sim sim-membership soak-membership raft-oracle failover mutants catch-up bench-restart bench-storage storage-model powercut bitflips fuzz agree conformance

help:            ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 18

env:             ## the isolated environment with everything that tests need
	@sbin/env.sh --dev

test: env        ## all tests
	$(PY) -m pytest -n 2 --dist loadfile

test-clients: env ## the stock Java, Go and Python clients against a cluster (builds what is installed)
	$(PY) tests/clients/run.py

check: env       ## formatting, lint, types, arrows, tidiness, generated documents, planted bugs that still apply
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PY) -m pytest -q tests/repo tests/mutants

ci: check        ## what CI runs
	$(MAKE) test

format: env      ## format the code
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

raft-oracle: env ## N random directives through our Raft core and etcd's, identical text (needs Go); JOBS=n processes
	$(PY) tests/raft/oracle.py --n $(N) --seed $(SEED) $(if $(JOBS),--jobs $(JOBS))

sim: env         ## whole nodes, clients and faults in the simulated world: SEED=n for one seed; SEEDS=m START=n JOBS=2
	$(PY) -m iotdb_cluster.simulation --jobs $(JOBS) $(if $(SEEDS),--seeds $(SEEDS) --seed $(START),--seed $(SEED))

sim-membership: env ## random sequences of joins and leaves with crashes, simulated: SEED=n for one; SEEDS=m START=n JOBS=2
	$(PY) -m iotdb_cluster.simulation --growth --jobs $(JOBS) $(if $(SEEDS),--seeds $(SEEDS) --seed $(START),--seed $(SEED))

soak-membership: env ## nodes join, leave and die under load: MINUTES=1 at random, SCRIPT=1 the release's script
	$(PY) tests/cluster/membership.py --minutes $(or $(MINUTES),1) --seed $(SEED) $(if $(SCRIPT),--script)

failover: env    ## how long writes wait when a node is killed or stands still: TRIALS=100 kills, PAUSE=60 seconds away
	$(PY) tests/cluster/failover.py --trials $(TRIALS) --pause-s $(PAUSE) --seed $(SEED)

mutants: env     ## planted bugs: each must turn the suite that its patch names red; ONLY="name ..." for some of them
	$(PY) tests/mutants/run.py $(if $(ONLY),--only $(ONLY))

catch-up: env    ## a follower that was down while MB=2048 MiB were written catches up by snapshots: memory, digests
	$(PY) bench/catch_up.py --mb $(MB) --seed $(SEED)

bench-restart: env ## a killed node with MB=1024 MiB of log to replay: seconds until it serves, CPU, memory
	$(PY) bench/restart.py --mb $(if $(filter file,$(origin MB)),1024,$(MB)) --seed $(SEED)

bench-storage: env ## storage alone: ingest, size, reading, late data, opening, schema; SMALL=1 for a minute's form (fetches pyarrow)
	-@$(PY) -m pip install --quiet --disable-pip-version-check --no-input --requirement requirements/bench.txt
	$(PY) bench/storage.py $(if $(SMALL),--small)

storage-model: env ## the store against a dict: N=20000 random histories, JOBS processes
	$(PY) tests/storage/histories.py --n $(N) --seed $(SEED) --jobs $(JOBS)

powercut: env    ## power cuts at each of the first CALLS=2000 calls of a disk, for one node, two, all; JOBS, STEP=1
	$(PY) -m iotdb_cluster.simulation.powercut --calls $(CALLS) --step $(STEP) --jobs $(JOBS) --seed $(SEED)

bitflips: env    ## FLIPS=2000 flipped bits in every kind of file: noticed or harmless, never a wrong value
	$(PY) tests/damage/flips.py --n $(FLIPS) --seed $(SEED)

fuzz: env        ## nonsense for a cluster of its own, MINUTES=1: no answer but a status, nobody else is disturbed
	$(PY) tests/conformance/fuzz.py --minutes $(or $(MINUTES),1) --seed $(SEED)

agree: env       ## N random queries: a naive model, one node and three nodes give the same answers
	$(PY) tests/query/agree.py --queries $(N) --seed $(SEED)

conformance: env ## every transcript of a real 0.12.5 through every node, also with everything flushed in between
	$(PY) tests/conformance/run.py --long
