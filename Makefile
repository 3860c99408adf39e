# Two commands for a fresh machine: `make demo` and `make test`. Both make .venv from requirements.txt first, once.
PYTHON ?= python3
PY := .venv/bin/python

.PHONY: demo test lint

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

demo: .venv/installed
	$(PY) tools/demo.py

test: .venv/installed
	$(PY) -m pytest -q

lint: .venv/installed
	$(PY) -m ruff check .
