# The two commands of the README. Both need Python 3.11+, git, make and PyPI, and nothing else.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: reproduce test

reproduce: .venv/installed
	$(BIN)/python -m landmarks.params
	PATH="$(CURDIR)/$(BIN):$$PATH" dvc repro

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -q

.venv/installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt
	touch $@
