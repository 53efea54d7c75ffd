# `make` lists what can be made. Everything runs in .venv, which is made from requirements.txt when it is
# missing or out of date. Written for GNU make 3.81 (macOS) and newer.

STAMP := .venv/.complete
ASKED := $(PYTHON)
PYTHON ?= $(shell for python in python3.12 python3.11 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11) or print(sys._base_executable))' \
	2> /dev/null && break; done)

IN_VENV := PATH="$(CURDIR)/.venv/bin:$$PATH" .venv/bin/python
NO_GPU := CUDA_VISIBLE_DEVICES=
NBVAL := -m pytest --nbval --nbval-current-env --nbval-cell-timeout=300 notebooks
TESTS := -m pytest tests --numprocesses=auto --dist=worksteal
# As many notebooks at a time as there are cores, up to four, each with one thread, and with its own kernel
# from its first cell to its last.
BESIDE := --numprocesses=auto --maxprocesses=4 --dist=loadscope --no-loadscope-reorder

# What a run of the tests leaves behind: `tools/record_tests.py` makes a record of it.
REPORT := --junitxml=build/tests

# Two threads: the small machine that the course promises to run on. More would not be faster. And threads
# that wait asleep: beside other programs, threads that wait awake take each other's turns.
OMP_NUM_THREADS ?= 2
OMP_WAIT_POLICY ?= passive
export OMP_NUM_THREADS OMP_WAIT_POLICY

# What measures speeds would not be alone (Colab's notebooks), and what compiles for other GPUs needs none. The
# notebooks measure, too: there they run one by one.
ON_GPU := --ignore=tests/test_colab.py -m "not colab and not browser and not compiles"

.PHONY: help lab test test-gpu test-portable test-colab test-browser notebooks figures lint colab clean environment

help:  ## this list
	@echo "make TARGET, where TARGET is one of"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' Makefile

lab: environment  ## set up if need be, and open JupyterLab on notebook 00  (LAB_ARGS="--no-browser")
	@$(IN_VENV) -m jupyterlab --ServerApp.root_dir="$(CURDIR)" \
	  --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb $(LAB_ARGS)

test: environment  ## every test that needs no GPU, then every notebook, comparing its stored outputs
	$(NO_GPU) $(IN_VENV) $(TESTS) --maxprocesses=4 $(REPORT)/cpu/units.xml
	$(NO_GPU) OMP_NUM_THREADS=1 $(IN_VENV) $(NBVAL) $(BESIDE) $(REPORT)/cpu/notebooks.xml

test-gpu: environment  ## the same on this machine's GPU, with the tests that need one
	@$(IN_VENV) -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else \
	  "error: torch sees no GPU here; see python -m course doctor, or run make test")'
	$(IN_VENV) $(TESTS) --maxprocesses=8 $(ON_GPU) $(REPORT)/gpu/units.xml
	$(IN_VENV) $(NBVAL) $(REPORT)/gpu/notebooks.xml

test-portable: environment  ## the notebooks with each CPU instruction set of this machine, on 1, 2, 4 threads
	@case $$($(IN_VENV) -c 'import torch; print(torch.backends.cpu.get_cpu_capability())') in \
	  AVX512) sets="default avx2 avx512";; AVX2) sets="default avx2";; *) sets="default";; esac; \
	for set in $$sets; do for threads in 1 2 4; do \
	  echo; echo "ATEN_CPU_CAPABILITY=$$set OMP_NUM_THREADS=$$threads"; \
	  $(NO_GPU) ATEN_CPU_CAPABILITY=$$set OMP_NUM_THREADS=$$threads $(IN_VENV) $(NBVAL) -q \
	    || failed="$$failed $$set/$$threads"; \
	done; done; \
	[ -z "$$failed" ] || { echo "error: failed with$$failed" >&2; exit 1; }

test-colab: environment  ## every notebook as Colab runs it: an empty folder, the setup cell, all cells
	$(NO_GPU) $(IN_VENV) -m pytest tests/test_colab.py -m ""

test-browser: environment  ## every notebook in JupyterLab in a browser, run, looked at, widgets moved  (NB="01 02")
	@$(IN_VENV) -m pip install --disable-pip-version-check --quiet -r requirements-browser.txt
	$(IN_VENV) -m pytest tests/browser -m browser --tb=short --notebooks="$(NB)" $(if $(PICTURES),--pictures)

notebooks: environment  ## run the notebooks anew and store their outputs  (all, or NB="01 02")
	@$(IN_VENV) tools/notebooks.py execute $(NB)

figures: environment  ## draw the figures in assets/ anew
	@$(IN_VENV) tools/figures.py

lint: environment  ## ruff's rules and formatting, and the shape of every notebook
	$(IN_VENV) -m ruff check .
	$(IN_VENV) -m ruff format --check .
	$(IN_VENV) tools/notebooks.py check

colab:  ## write the course's address into every notebook and the README  (REPO=owner/name)
	@[ -n "$(REPO)" ] || { echo "error: say where the course lives: make colab REPO=owner/name" >&2; exit 1; }
	@$(MAKE) --silent --no-print-directory environment
	@$(IN_VENV) tools/notebooks.py stamp --repository "$(REPO)"
	@$(IN_VENV) tools/results.py

clean:  ## remove .venv and caches; downloads in data/ and your runs/ stay
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} + -o -name .ipynb_checkpoints -prune -exec rm -rf {} +

# The stamp is written last and says where the environment stands. Without it the installation was
# interrupted; with another folder in it the repository was moved; both begin again, as does a PYTHON
# asked for that is not the environment's. A newer requirements.txt only updates.
environment:
	@{ [ "$$(cat $(STAMP))" = "$(CURDIR)" ] && ours=$$(.venv/bin/python -V) \
	    && { [ -z "$(ASKED)" ] || [ "$$ours" = "$$("$(ASKED)" -V)" ]; }; } 2> /dev/null || { \
	  "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null || { \
	    echo "error: the course needs Python 3.11 or newer: install it (python.org; brew install python@3.12;" \
	      "apt install python3 python3-venv), or name it: PYTHON=/path/to/python3.12" >&2; exit 1; }; \
	  [ ! -e .venv ] || echo ".venv is unfinished, was moved or is of another Python: making it anew."; \
	  rm -rf .venv; }
	@$(MAKE) --silent --no-print-directory $(STAMP)

# Python compiles a module when it is imported first, and most never are: pip need not compile them all.
$(STAMP): requirements.txt
	@rm -f $@
	@[ -d .venv ] || "$(PYTHON)" -m venv .venv
	@.venv/bin/python -m pip install --disable-pip-version-check --no-compile \
	  $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -r requirements.txt
	@.venv/bin/python -m pip install --disable-pip-version-check --quiet \
	  --no-deps --no-build-isolation --editable .
	@echo "$(CURDIR)" > $@
