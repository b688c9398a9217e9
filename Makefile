# Two commands for a fresh machine with Python 3.11 and make: `make run` and `make test`.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: run test coverage check audit format requirements screenshots clean

run: $(INSTALLED)  ## Serve: on GRADIO_URL if it is set, else on the embedded demo backend.
	@exec $(BIN)/gunicorn wsgi:app

# Side by side first, then one by one what measures time. ARGS may well choose none of either: 5.
test: $(INSTALLED)  ## The whole suite.
	@$(BIN)/python -m pytest -m "not alone" -n 3 --dist loadfile --no-loadscope-reorder $(ARGS) || [ $$? -eq 5 ]
	@$(BIN)/python -m pytest -m alone $(ARGS) || [ $$? -eq 5 ]

coverage: $(INSTALLED)  ## The same, and which lines it ran; takes a quarter longer.
	@$(BIN)/coverage erase
	@$(MAKE) --no-print-directory test ARGS="--cov --cov-append --cov-report= $(ARGS)"
	@$(BIN)/coverage report

check: $(INSTALLED)  ## Style, types and the direction of imports.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

audit: $(INSTALLED)  ## Known vulnerabilities in the pinned versions; skipped where PyPI does not answer.
	@$(BIN)/python scripts/audit.py

format: $(INSTALLED)  ## Bring the code into its form.
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

requirements: $(INSTALLED)  ## Compile the pinned sets from pyproject.toml.
	@for set in "requirements.txt" "requirements-demo.txt --extra=demo" \
			"requirements-dev.txt --extra=demo --extra=test --extra=tools"; do \
		$(BIN)/pip-compile --quiet --strip-extras --no-emit-index-url --no-emit-trusted-host \
			--no-emit-find-links --no-header --upgrade --output-file=$$set pyproject.toml; \
	done

screenshots: $(INSTALLED)  ## Take pictures of the page into docs/screenshots (needs chromium).
	@$(BIN)/python scripts/take_screenshots.py

clean:  ## Remove what the other commands made.
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*

$(INSTALLED): requirements-dev.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 is needed, and was not found." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing what is needed into $(VENV) (once, about a minute) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements-dev.txt
	@touch $@
