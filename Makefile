# Two commands: `make demo` and `make test`. Each sets up what it needs in .venv.
PYTHON ?= python3
BIN := .venv/bin
DATA ?= ../shared/data

.PHONY: demo test lint bench benchmark evaluate docs figures animation live-picture dist clean test-arm64 test-pythons

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

# Beside our models: peers, whose models are the user's, and MediaPipe, which wants another numpy and so a venv of its own.
# `make benchmark FULL=full-18.onnx` also measures a full model, which is too large to be bundled.
BUNDLED := $(basename $(notdir $(wildcard img2pose_edge/models/*.json)))
benchmark: .venv/.dev .cache/mediapipe/.done
	$(BIN)/img2pose-edge bench --models $(BUNDLED) $(FULL) --data $(DATA)/eval --peers $(DATA)/../peers \
		--mediapipe .cache/mediapipe/bin/python --rounds 12 --report docs/benchmark.html

.cache/mediapipe/.done: pyproject.toml
	$(PYTHON) -m venv .cache/mediapipe
	.cache/mediapipe/bin/python -m pip install --quiet --disable-pip-version-check -e . scikit-image mediapipe==0.10.21 || \
		echo "MediaPipe 0.10.21 has no wheel for this Python: the benchmark will name it as missing"
	touch $@

evaluate: .venv/.dev
	$(BIN)/img2pose-edge evaluate --data $(DATA)/eval

# Into site/, to be read from there or from any web server. The variable silences a notice about MkDocs' future.
docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

figures: .venv/.dev
	$(BIN)/python docs/tools/figures.py

# The clips are CC BY 4.0; attribution stands beside the animation.
CLIPS := head-pose-face-detection-female-and-male face-demographics-walking-and-pause
animation: .venv/.dev
	for clip in $(CLIPS); do \
		$(BIN)/img2pose-edge video $(DATA)/eval/video/$$clip.gif --smooth --out .cache/$$clip.mp4 || exit 1; done
	$(BIN)/python docs/tools/animation.py $(CLIPS:%=.cache/%.mp4) --out docs/head-pose.webp

# Needs Chromium and Playwright.
live-picture: .venv/.dev
	$(BIN)/python docs/tools/live_page.py $(DATA)/eval/video/head-pose-face-detection-female-and-male.gif --out docs/live.webp

# The wheel is built from the source distribution: what one has the other has.
dist: .venv/.dev
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.demo: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[demo]"
	touch $@

.venv/.docs: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[docs]"
	touch $@

.venv/.dev: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

clean:
	rm -rf .venv build dist *.egg-info

# Emulated, as root; the arm64 system (600 MB) is kept in .cache.
test-arm64: .venv/.dev
	tests/arm64.sh

# Pythons that the machine has, of those supported.
test-pythons: .venv/.dev
	tests/pythons.sh
