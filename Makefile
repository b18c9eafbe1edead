# make demo | test | test-fast | test-all | test-slow | test-floors | test-versions | test-vllm | test-gpu | test-times | test-capabilities | fuzz | check | fix | docs | docs-serve | benchmark-planner MODEL=NAME | evidence MODEL=NAME. Everything is installed into .venv at the versions of constraints.txt.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready
# A process for each core, one thread each; the tests of a file stay together and share what they set up.
# tests/conftest.py puts the files that take longest first. Bytecode is kept, because many tests start processes of their own.
TESTS = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --dist loadfile --no-loadscope-reorder
# The oldest releases that pyproject.toml admits, in an environment of their own.
FLOORS = $(VENV)/floors
# vLLM's CPU build pins other releases than constraints.txt, so it has an environment of its own.
VLLM = $(VENV)/vllm
# Minor releases of transformers that make test-versions tries: the floor, one in the middle, the newest that plans/executor/compat.py names.
VERSIONS = 5.10 5.20 5.24

.PHONY: demo test test-fast test-all test-slow test-floors test-versions vllm-env test-vllm test-gpu test-times test-capabilities fuzz check fix docs docs-serve benchmark-planner evidence

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# The whole way on the built-in model: measure, decide, run. Writes plan.yaml and report.html.
demo: $(READY)
	$(BIN)/tpcal calibrate
	$(BIN)/tpcal plan --budget 0.22
	$(BIN)/tpcal show plan.yaml
	$(BIN)/tpcal eval --plan plan.yaml --control random,grid --output tpcal-out/eval.json
	$(BIN)/tpcal report --evaluation tpcal-out/eval.json

test: $(READY)
	$(TESTS)

# For every save: what was measured to be fast, and the laws on a few models.
test-fast: $(READY)
	$(TESTS) --scope fast

# For every night: also each law on each model with both attention kernels.
test-all: $(READY)
	$(TESTS) --scope nightly

# What takes minutes, or needs a Chromium or a PostgreSQL server; tests of what is missing are skipped.
test-slow: $(READY)
	$(TESTS) --scope nightly -m "slow or browser or postgres"

test-floors: $(READY)
	$(BIN)/python tests/floors.py > $(VENV)/floors.txt
	$(PYTHON) -m venv $(FLOORS)
	$(FLOORS)/bin/pip install --quiet --disable-pip-version-check -c $(VENV)/floors.txt -e '.[dev]'
	OMP_NUM_THREADS=1 $(FLOORS)/bin/python -m pytest --numprocesses logical --dist loadfile --scope fast

# What depends on the release of transformers, each in an environment of its own. All else is pinned but the two packages of which each release wants others.
test-versions: $(addprefix test-transformers-,$(VERSIONS))

test-transformers-%:
	mkdir -p $(VENV)/transformers
	sed -E '/^(transformers|tokenizers|huggingface_hub)==/d' constraints.txt > $(VENV)/transformers/$*.txt
	echo 'transformers==$*.*' >> $(VENV)/transformers/$*.txt
	$(PYTHON) -m venv $(VENV)/transformers/$*
	$(VENV)/transformers/$*/bin/pip install --quiet --disable-pip-version-check -c $(VENV)/transformers/$*.txt -e '.[dev]'
	OMP_NUM_THREADS=1 $(VENV)/transformers/$*/bin/python -m pytest --scope $(or $(SCOPE),nightly) -m versions tests/plans/test_laws.py tests/plans/executor

# Makes the environment of make test-vllm anew: downloads 3.5 GB.
vllm-env:
	rm -rf $(VLLM) && mkdir -p $(VENV)
	tests/vllm_environment.sh $(PYTHON) $(VLLM)

# Plans in vLLM, on its CPU backend: 40 minutes or more on one core, after make vllm-env. On a GPU if the environment has vLLM's own
# build, as docs/vllm.md says.
test-vllm:
	OMP_NUM_THREADS=1 $(VLLM)/bin/python -m pytest -m vllm -W ignore -o filterwarnings=default tests/integrations/vllm

# On a machine with a CUDA device, in an environment that holds torch for it: make test-gpu PYTHON=python3.
# Warnings of the device's own releases of packages are no errors. OPTIONS="--gpu-device cpu" tries the tests without a GPU.
test-gpu:
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -m gpu --numprocesses logical --maxprocesses 6 --dist loadfile -o filterwarnings=default $(OPTIONS) $(wildcard tests/*_gpu.py tests/*/*_gpu.py tests/*/*/*_gpu.py)

# Measures anew which tests are slow; the file decides what make test-fast runs.
test-times: $(READY)
	$(TESTS) --scope nightly --record-times tests/measured_times.txt

# What compares numbers, with the sums of every instruction set of this processor. Torch reads the variable when it is imported.
test-capabilities: $(READY)
	set -e; known=$$($(BIN)/python tests/capabilities.py); for capability in $$known; do \
		echo "ATEN_CPU_CAPABILITY=$$capability"; \
		ATEN_CPU_CAPABILITY=$$capability $(BIN)/python -m pytest --scope nightly tests/plans tests/calibrate; \
	done

# Thousands of broken plans, profiles, journals, figures and data sets; says how many were refused. Minutes.
# FUZZ_EXAMPLES is their number for plans (10000), of which the other kinds of files get shares.
fuzz: $(READY)
	$(BIN)/python -m pytest tests/fuzz -m fuzz

# mypy finds the package, whose root is this folder, through a link outside of it.
check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p $(VENV)/link && ln -sfn "$(CURDIR)" $(VENV)/link/tpcal
	MYPYPATH=$(VENV)/link $(BIN)/mypy
	MYPYPATH=$(VENV)/link:tests $(BIN)/mypy --explicit-package-bases $(filter-out tests/test_%, $(wildcard tests/*.py tests/tiny/*.py))

fix: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Pages that are made from the code, plans/plan.schema.json, and site/ from all pages; a link that leads nowhere is an error.
docs: $(READY)
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --strict

# What docs/planner-results.md says, measured on the built-in model: 40 minutes on two cores. It continues where it was stopped.
# make benchmark-planner MODEL=smol writes docs/planner-results-smol.md; OPTIONS=--dry-run says how long it takes.
benchmark-planner: $(READY)
	$(BIN)/python -m benchmarks.planner --model $(or $(MODEL),embedded) $(OPTIONS)

# Measures a model as a whole into results/: make evidence MODEL=llava-1.5-7b OPTIONS="--device cuda --dtype bfloat16"
evidence: $(READY)
	$(BIN)/python -m tools.evidence $(MODEL) $(OPTIONS)
