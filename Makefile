# Each target sets up what it needs, on a fresh machine too: the virtual environment, the pinned
# packages and, for the tests, a browser. `make app PYTHON=python3.12 ARGS="--port 7861"` works.
# Python compiles what is imported, once; compiling all of the packages at once takes a minute.
PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: app test coverage lint types format lock browser

app: $(VENV)/app.stamp
	$(BIN)/python app.py $(ARGS)

test: $(VENV)/dev.stamp browser
	$(BIN)/python -m pytest $(ARGS)

# How much of composer/ the tests run, and the ten modules of which they run least.
coverage: $(VENV)/dev.stamp browser
	$(BIN)/python -m pytest -q --cov --cov-report= $(ARGS)
	$(BIN)/coverage report --skip-empty --sort cover | sed -n '1,12p;/^TOTAL/p'

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/typos

types: $(VENV)/dev.stamp
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Pins anew everything the project needs, for every Python and system. Needs uv.
lock:
	UV_CUSTOM_COMPILE_COMMAND="make lock" uv pip compile pyproject.toml --quiet --universal \
		--python-version 3.10 --no-annotate --upgrade --output-file requirements.lock
	UV_CUSTOM_COMPILE_COMMAND="make lock" uv pip compile pyproject.toml --quiet --universal \
		--python-version 3.10 --no-annotate --upgrade --extra dev \
		--constraints requirements.lock --output-file requirements-dev.lock

# The page tests open a Chromium of the system; where there is none, Playwright's own.
browser: $(VENV)/dev.stamp
	@for name in chromium chromium-browser google-chrome google-chrome-stable; do \
		command -v $$name >/dev/null && exit 0; \
	done; $(BIN)/playwright install chromium

$(VENV)/made.stamp:
	@$(PYTHON) -c 'import sys; sys.exit("Composer needs Python 3.10 or newer, and $(PYTHON) is " \
		+ sys.version.split()[0] + ": make PYTHON=python3.12" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/app.stamp: requirements.lock pyproject.toml | $(VENV)/made.stamp
	@echo "Installing Composer into $(VENV) (some minutes the first time)"
	$(PIP) install --no-compile -r requirements.lock
	$(PIP) install --no-deps -e .
	@touch $@

$(VENV)/dev.stamp: requirements-dev.lock pyproject.toml | $(VENV)/made.stamp
	@echo "Installing Composer and its tools into $(VENV) (some minutes the first time)"
	$(PIP) install --no-compile -r requirements-dev.lock
	$(PIP) install --no-deps -e .
	@touch $@
