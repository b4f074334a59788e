# make demo   installs the base package into .venv and detects defects on drawn steel (IMAGES=dir: on your images)
# make test   installs everything the tests need and runs them all
# make lint   ruff, and mypy --strict on an installed copy
# make examples-deps   what the tests of examples/ need beyond Python (Debian packages when run as root, npm packages)
# make bench  the figures of benchmarks/README.md (ONLY=name: one of them)

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
IMAGES ?=
ONLY ?=
TESTS ?= tests
DEBIAN_PACKAGES := chromium chromium-driver cmake g++ libpng-dev nlohmann-json3-dev
NPM_CI := npm ci --ignore-scripts --no-audit --no-fund --loglevel=error

.PHONY: demo test lint bench wheel examples-deps clean

$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	touch $@

$(VENV)/.base: $(VENV)/.made setup.cfg pyproject.toml
	$(PIP) --editable .
	touch $@

# torch and torchvision in one call, so that pip takes a matching pair.
$(VENV)/.full: $(VENV)/.made setup.cfg pyproject.toml
	$(PIP) --editable ".[test,dev]"
	touch $@ $(VENV)/.base

demo: $(VENV)/.base
	$(BIN)/python examples/demo.py --out runs/demo $(if $(IMAGES),--images "$(IMAGES)")

# One thread a process: two processes with two threads each wait for each other on two cores. A process that dies ends the
# run, which would wait for it for ever.
test: $(VENV)/.full
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope --max-worker-restart 0 $(TESTS)

# mypy sees the package as a user's mypy would: installed, with training/ and export/ in their places.
lint: $(VENV)/.full
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/lib build/lint
	$(PIP) --no-deps --no-build-isolation --target build/lint .
	cd build/lint && MYPYPATH=. ../../$(BIN)/mypy --strict --config-file ../../pyproject.toml -p agssp_zoo

bench: $(VENV)/.full
	$(BIN)/python -m benchmarks $(if $(ONLY),--only $(ONLY))

# Without them `make test` skips those tests and says so; EXAMPLES_REQUIRED=1 makes that a failure.
examples-deps: $(VENV)/.full
	@if ! dpkg -s $(DEBIAN_PACKAGES) >/dev/null 2>&1; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
				apt-get install -y -qq --no-install-recommends $(DEBIAN_PACKAGES) >/dev/null; \
		else \
			echo "not root on Debian; install yourself: $(DEBIAN_PACKAGES)"; \
		fi; \
	fi
	PYTHON=$(abspath $(BIN))/python examples/cpp/get_onnxruntime.sh
	cd examples/node && $(NPM_CI)
	cd examples/web && $(NPM_CI)

wheel: $(VENV)/.full
	rm -rf build/lib dist
	$(BIN)/python -m build --wheel --outdir dist .

clean:
	rm -rf build dist runs/demo
