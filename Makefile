# Two commands for a fresh machine: `make demo` and `make test`. Both make .venv from requirements.txt first, once;
# `make env` does that alone. constraints.txt holds the versions that CI ran with; `make env CONSTRAINTS=` takes the newest.
PYTHON ?= python3
PY := .venv/bin/python
CONSTRAINTS ?= constraints.txt

.PHONY: env demo test lint docs bench gpu mutants reproduce

env: .venv/installed

.venv/installed: requirements.txt $(CONSTRAINTS)
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
	touch $@

# Threads that spin for long while they wait slow other processes down tenfold, threads that never do the demo by a third.
demo: export GOMP_SPINCOUNT ?= 10000
demo: .venv/installed
	$(PY) tools/demo.py

# Two tests at a time, one thread each: what a stopped and resumed run gives is the same to the bit with one thread.
# By halves (worksteal), so that what the tests of a file share is made once.
test: .venv/installed
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist worksteal

lint: .venv/installed
	$(PY) -m ruff check .

# The documentation as a site that needs no network: site/index.html. Its tools have an environment of their own.
docs: .venv-docs/installed
	rm -rf site && .venv-docs/bin/zensical build --strict

.venv-docs/installed: requirements-docs.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	touch $@

# Times of the main parts on the CPU, in benchmarks/results, and what a step asks a GPU's host to launch.
bench: .venv/installed
	$(PY) -m benchmarks.gpu --device cpu --only step embedding clustering memories --minutes 60
	$(PY) -m benchmarks.launches

# On a machine with a GPU, about 8 minutes: times of every part, the most valuable first, its tests, a short demo
# (docs/gpu.md). What fails does not stop the rest.
gpu: .venv/installed
	failed=0; $(PY) -m benchmarks.gpu || failed=1; $(PY) -m pytest -q -m gpu || failed=1; \
	$(PY) tools/demo.py DEVICE cuda OUTPUT_DIR runs/gpu-demo PREPARE.EPOCHS 4 METHOD.CROSS_EPOCH 3 PROMPT.EPOCHS 5 \
		FINETUNE.EPOCHS 6 || failed=1; exit $$failed

# Checks a data set in ROOT, caches it, and runs CLIP's download, training, tests and table: sysu and llcm three seeds,
# regdb ten trials. OPTIONS go to tools/experiments.py: OPTIONS="--at_once 2", "--cluster slurm", "TEST.EVERY 10".
# CLIP is MODEL.CLIP_WEIGHTS; CHECK="--allow-partial", with OPTIONS="DATASET.CHECK_COUNTS False", accepts other counts.
CLIP ?= openai
GRID = $(if $(filter regdb,$(DATASET)),--trials 1-10,--seeds 1-3)
reproduce: .venv/installed
	@test -n "$(DATASET)" -a -n "$(ROOT)" || \
		{ echo "error: make reproduce needs DATASET=sysu, regdb or llcm, and ROOT=its folder"; exit 2; }
	for trial in $(if $(filter regdb,$(DATASET)),$$(seq 10),1); do \
		$(PY) tools/process.py --dataset $(DATASET) --root "$(ROOT)" --trial $$trial $(CHECK) --check && \
		$(PY) tools/process.py --dataset $(DATASET) --root "$(ROOT)" --trial $$trial $(CHECK) || exit 1; done
	$(PY) -c "from model.clip import load_clip; load_clip('$(CLIP)')"
	$(PY) tools/experiments.py run --config_file configs/$(DATASET).yml $(GRID) DATASET.ROOT "$(ROOT)" \
		MODEL.CLIP_WEIGHTS "$(CLIP)" $(OPTIONS)

# Breaks the method's core line by line and counts what the tests notice; takes hours. MUTANTS="--only FILE --sample 0.3".
mutants: .venv/installed
	$(PY) -m pip install --quiet --disable-pip-version-check "cosmic-ray>=8.4" "coverage>=7.6"
	OMP_NUM_THREADS=1 $(PY) tools/dev/mutants.py --jobs 2 $(MUTANTS)
