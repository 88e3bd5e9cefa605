# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Tests keep torch to one thread; two processes of them share two cores.
PYTEST := $(BIN)/python -m pytest -q -n 2

.PHONY: setup demo docs test test-long test-faults test-faults-brief test-nodes test-quiet lint types imports check clean browser

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	touch $(STAMP)

# For the tests: Triton's interpreter, to test the GPU kernels on a CPU, and what builds the documentation.
$(VENV)/.kernels: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev,kernels,docs]' -c constraints.txt
	touch $(VENV)/.kernels

demo: setup
	$(BIN)/unidetox run experiments/tiny.yaml

# The documentation site, in outputs/site; it opens from disk and fetches nothing.
$(VENV)/.docs: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev,docs]' -c constraints.txt
	touch $(VENV)/.docs

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "outputs/site/index.html"

# The report is tested in a real browser; where apt can bring one, it does, else those tests say why they skip.
browser:
	@command -v chromium >/dev/null 2>&1 || command -v google-chrome >/dev/null 2>&1 \
	|| { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null; } \
	|| echo "no Chromium here: the browser tests will skip"

test: $(VENV)/.kernels browser
	$(PYTEST) --dist loadfile -m "not long and not faults and not nodes and not quiet"

# A few tests of most of a minute each; CI runs them too.
test-long: $(VENV)/.kernels
	$(PYTEST) --dist loadfile -m "long and not faults and not nodes and not quiet"

# Faults injected into whole runs, and whole runs watched from outside. SEEDS: random schedules of kills, from FIRST on.
SEEDS ?= 20
FIRST ?= 0
test-faults: $(VENV)/.kernels
	$(PYTEST) --dist loadgroup -m faults --seeds $(SEEDS) --first-seed $(FIRST)

# A whole run on a Ray cluster of two nodes on this machine, one of which is lost; root, or slower without.
test-nodes: $(VENV)/.kernels
	$(BIN)/python -m pytest -q -m nodes

# What compares measured times with one another: nothing else may run on the machine.
test-quiet: $(VENV)/.kernels
	$(BIN)/python -m pytest -q -m quiet

# The part of the faults that CI runs.
test-faults-brief: $(VENV)/.kernels
	$(PYTEST) --dist loadgroup -m "faults and brief" --seeds 1

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

imports: setup
	$(BIN)/lint-imports

check: lint types imports

clean:
	rm -rf outputs .pytest_cache .ruff_cache .mypy_cache
