# Two commands: `make demo` and `make test`. Each sets up what it needs in .venv.
PYTHON ?= python3
BIN := .venv/bin
DATA ?= ../shared/data

.PHONY: demo test lint bench evaluate clean test-arm64

demo: .venv/.demo
	$(BIN)/img2pose-edge demo --out demo.png

# Quantization in a process of its own: its libraries start threads, which the loader processes that other
# tests fork do not survive.
test: .venv/.dev lint
	$(BIN)/python -m pytest --ignore tests/test_quantize.py
	$(BIN)/python -m pytest tests/test_quantize.py

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/.dev
	$(BIN)/python -m pytest tests/test_speed.py --benchmark-only --benchmark-columns=min,median,iqr,rounds

evaluate: .venv/.dev
	$(BIN)/img2pose-edge evaluate --data $(DATA)/eval

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.demo: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[demo]"
	touch $@

.venv/.dev: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

clean:
	rm -rf .venv build dist *.egg-info

# Emulated, as root; the arm64 system (600 MB) is kept in .cache.
test-arm64: .venv/.dev
	tests/arm64.sh
