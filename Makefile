# `make reproduce` and the tests need Linux on x86-64, Python 3.11+, git, make and PyPI, and nothing else.
PYTHON ?= python3
BIN := .venv/bin
# Two processes share the cores: a thread of OpenMP that waits must not keep one busy.
PYTEST := OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -q --numprocesses=2 --max-worker-restart=0 \
	--dist=loadfile --no-loadscope-reorder

.PHONY: reproduce photos quick test lint verify verify-matrix check-cache torture fuzz benchmark scale ablations backbones

# DVC runs the stages with this shell. The user's may be none, such as nologin.
export SHELL := /bin/sh
# DVC asks for the user's name, which a container may lack.
export USER ?= $(shell id -u)
# Other packages and modes of Python would change the results.
unexport PYTHONPATH PYTHONSAFEPATH PYTHONOPTIMIZE

reproduce: .venv/installed
	$(BIN)/python -m landmarks.params
	$(BIN)/python -m dvc repro

# Trains on a folder of pictures: make photos ROOT=/my/pictures ARGS="--recipe small -S train.repeats=3"
photos: .venv/installed
	@$(BIN)/python -m tools.photos '$(subst ','\'',$(value ROOT))' $(ARGS)

# Lint, types and the fast tests: two minutes on two cores.
quick: lint
	$(PYTEST) -m "not slow"

# Lint, types and all tests.
test: lint
	$(PYTEST)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Writes benchmarks/results.md. Run `make reproduce` before it, and nothing else meanwhile.
benchmark: .venv/installed
	$(BIN)/python -m benchmarks.speed

# Writes benchmarks/scale.md: the pipeline at the study's size. An hour, 35 GB in TMPDIR, and nothing else meanwhile.
scale: .venv/installed
	$(BIN)/python -m benchmarks.scale

# Does a clone of HEAD reproduce the committed results? The second target tries it under other conditions.
verify: .venv/installed
	$(BIN)/python -m tools.verify

verify-matrix: .venv/installed
	$(BIN)/python -m tools.verify --matrix

# Deletes damaged objects from DVC's cache.
check-cache: .venv/installed
	$(BIN)/python -m tools.check_cache

# Kills the pipeline (kill -9) at 50 random moments, in a clone.
torture: .venv/installed
	$(BIN)/python -m tools.torture

# Many more odd inputs than the tests try.
fuzz: .venv/installed
	FUZZ=5000 $(BIN)/python -m pytest -q -s tests/test_fuzz.py

AS_PHOTOGRAPHS = -S data.source=gldv2 -S 'data.root=$(PHOTOGRAPHS)' -S filter.skip_top=0 -S augment.eval_rotation=45

# Writes docs/ablations.md. PHOTOGRAPHS is the top directory or URL of a data set in the layout of Google Landmarks v2.
ablations: .venv/installed
	$(BIN)/python -m studies.ablations Sample
ifdef PHOTOGRAPHS
	$(BIN)/python -m studies.ablations Photographs $(AS_PHOTOGRAPHS) -S augment.crop=224
endif

# Writes docs/backbones.md in the same way.
backbones: .venv/installed
	$(BIN)/python -m studies.backbones Sample
ifdef PHOTOGRAPHS
	$(BIN)/python -m studies.backbones "Photographs, EfficientNet-Lite0" $(AS_PHOTOGRAPHS) -S augment.crop=224 --only lite0
	$(BIN)/python -m studies.backbones "Photographs, VGG-16" $(AS_PHOTOGRAPHS) -S augment.crop=224 --only vgg16
	$(BIN)/python -m studies.backbones "Photographs, 112 pixels, 15 epochs" $(AS_PHOTOGRAPHS) -S train.epochs=15 \
		--only "vgg16 conv4"
endif

.venv/installed: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps -e .
	touch $@
