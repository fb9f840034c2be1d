# `make demo` and `make test` set up all that they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A file runs in one worker, so that what its tests share is made once.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: demo test test-slow lint types setup clean

demo: setup
	$(BIN)/mobilekit demo

test: setup lint types
	$(PYTEST) -m "not slow and not device"

test-slow: setup
	$(PYTEST) -m "slow and not device"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy cannot see `export/` as `mobilekit.export` in a checkout, so it checks an installed copy
types: setup
	rm -rf build
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --target build/types .
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p mobilekit

setup: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "setuptools>=77" wheel
	$(BIN)/pip install --quiet --disable-pip-version-check "torch==2.13.0" -e ".[all]"
	touch $@

clean:
	rm -rf $(VENV) build runs *.egg-info
