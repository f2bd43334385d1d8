# make setup | demo | test | lint | dist | parity. Nothing else is needed than Python >= 3.11.
PY ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# uv where it is on the path, else pip: the same packages, ten times faster. --seed puts pip
# into the environment, which pages and messages name and uv would leave out.
UV := $(shell command -v uv 2>/dev/null)
MAKE_VENV := $(if $(UV),$(UV) venv --quiet --seed --allow-existing --python $(PY),$(PY) -m venv)
INSTALL := $(if $(UV),$(UV) pip install --quiet --python $(BIN)/python,$(BIN)/python -m pip install --quiet --disable-pip-version-check)
DEMO := runs/demo
PARITY ?= .venv-parity
TPU := .tpu-compiler

.PHONY: setup demo test lint dist parity

setup: $(VENV)/.installed

# The requirements, then the project itself as it lies here (editable), so that
# `import mlseg_jax` and the command `mlseg-jax` work from any directory. Made again when
# either changes.
$(VENV)/.installed: requirements.txt requirements-dev.txt pyproject.toml setup.py Makefile
	$(MAKE_VENV) $(VENV)
	$(INSTALL) -r requirements.txt -r requirements-dev.txt
	$(INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup
	$(BIN)/python main.py train --config=configs/demo.py --workdir=$(DEMO)
	rm -rf $(DEMO)/pictures
	$(BIN)/python main.py export_dataset --config=configs/demo.py --output=$(DEMO)/pictures --config.data.train_examples=6 --config.data.eval_examples=6
	$(BIN)/python main.py predict --workdir=$(DEMO) --images=$(DEMO)/pictures/images/val --output=$(DEMO)/predictions
	$(BIN)/python main.py report --workdir=$(DEMO)

test: setup
	PYTHONPATH=$(CURDIR)/$(TPU) $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The compiler that `plan` asks about TPUs (700 MB), of the version that JAX names. Beside
# the environment, where JAX would look for TPUs whatever one does; only for Linux on
# x86-64. Without it its tests are skipped.
ifeq ($(shell uname -sm),Linux x86_64)
test: $(TPU)/.installed
endif

$(TPU)/.installed: $(VENV)/.installed
	rm -rf $(TPU)
	$(INSTALL) --no-deps --target $(TPU) "$$($(BIN)/python -c 'import importlib.metadata as m; \
	print(next(r for r in m.requires("jax") if r.startswith("libtpu")).partition(";")[0])')" \
	&& touch $@ || echo "No TPU compiler could be installed: the tests of plan for TPUs are skipped."

# Against the public PyTorch implementations; their packages stay out of $(VENV).
parity: $(PARITY)/.installed
	PYTHONPATH=. JAX_PLATFORMS=cpu $(PARITY)/bin/python tests/parity/live.py
	JAX_PLATFORMS=cpu $(PARITY)/bin/python tests/parity/live_region_exports.py

$(PARITY)/.installed: requirements.txt requirements-parity.txt Makefile
	$(MAKE_VENV) $(PARITY)
	$(subst $(BIN),$(PARITY)/bin,$(INSTALL)) -r requirements.txt -r requirements-parity.txt
	@touch $@

lint: setup
	$(BIN)/python -m ruff check . && $(BIN)/python -m ruff format --check .

# An sdist and a wheel in dist/, for a package index or for a machine without one.
dist: setup
	rm -rf dist
	$(BIN)/python -c "from setuptools import build_meta as b; b.build_sdist('dist'); b.build_wheel('dist')"
	rm -rf build
	@ls dist
