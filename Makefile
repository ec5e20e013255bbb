# Two commands matter: `make demo` and `make test`. Both build .venv on first use and need no network after that.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROMPT ?= The sky is blue because
SEED ?= 7

.PHONY: demo test install clean

demo: $(VENV)/.demo
	$(BIN)/python -m orchestratord.demo --prompt "$(PROMPT)" --seed $(SEED)

# What failed is said once more at the end: the output before it is long.
test: $(VENV)/.dev
	$(BIN)/tox run || { grep -lE '^exit_code: -?[1-9]' .tox/*/log/*commands*.log | xargs -r -d '\n' tail -n 80; exit 1; }

install: $(VENV)/.dev

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	test -e $(VENV)/.dev || $(BIN)/pip install --quiet --disable-pip-version-check -e ".[demo]"
	touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) .tox build dist .mypy_cache .ruff_cache .hypothesis
