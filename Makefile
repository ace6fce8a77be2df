# make demo | test | test-all | lint. With VENV= the interpreter PYTHON is used as it is.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= runs/demo

ifeq ($(VENV),)
PY = $(PYTHON)
else
PY = $(VENV)/bin/python
ENVIRONMENT = $(VENV)/installed
endif

export PYTHONPATH := .:kernels

.PHONY: demo test test-all lint

demo: $(ENVIRONMENT)
	rm -rf $(DEMO) && mkdir -p $(DEMO)
	$(PY) -m gca_lit.data.prepare --output data/shards/demo/train \
		--input data/samples/north_west_passage.txt data/samples/stories_from_the_odyssey.txt
	$(PY) -m gca_lit.data.prepare --input data/samples/emma.txt --output data/shards/demo/val
	$(call train_and_evaluate,gca,)
	$(call train_and_evaluate,sliding_window,--config configs/demo/sliding_window.yaml)
	$(call train_and_evaluate,full,--config configs/demo/full.yaml)
	@$(PY) -m gca_lit.results.plots $(DEMO)/gca $(DEMO)/sliding_window $(DEMO)/full --output $(DEMO)
	@cat $(DEMO)/seconds.txt
	@echo "2048 x 2048 matrix product: $$($(PY) -m timeit -s 'import torch; x = torch.rand(2048, 2048)' 'x @ x')"
	@echo "table: $(DEMO)/table.md, picture: $(DEMO)/accuracy_by_length.png"

# $(call train_and_evaluate,name,overlays): both runs of one backend, and how long they took.
define train_and_evaluate
	@start=$$(date +%s); run="--config configs/demo.yaml $(2) --trainer.default_root_dir $(DEMO)/$(1)"; \
	$(PY) lightning_cli.py fit $$run && $(PY) lightning_cli.py validate $$run --ckpt_path last && \
	echo "$(1): $$(( $$(date +%s) - start )) s" >> $(DEMO)/seconds.txt
endef

test: $(ENVIRONMENT)
	$(PY) -m pytest -n 2 -m "not slow"

test-all: $(ENVIRONMENT)
	$(PY) -m pytest -n 2

lint: $(ENVIRONMENT)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# torch comes first: left to the dependencies, pip may choose another build of it.
$(VENV)/installed: constraints.txt pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install torch==2.13.0
	$(VENV)/bin/pip install -c constraints.txt -e ".[dev]"
	touch $@
