# make demo   base installation without torch, one synthetic scan segmented      (under 3 minutes)
# make test   everything installed, all quick tests                              (under 12 minutes)
# make lint   formatting, style, types, layers
# make test-slow   the tests that take minutes
PYTHON ?= python3
DEMO = .venv-demo
VENV = .venv
INSTALL = -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-slow lint clean

demo: $(DEMO)/installed
	$(DEMO)/bin/seg-infer --demo demo

test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -m "not slow" -n 2 --dist worksteal

test-slow: $(VENV)/installed
	$(VENV)/bin/python -m pytest -m slow --timeout 3600

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	mkdir -p .types/seg && for part in infer train export; do ln -sfn ../../$$part .types/seg/$$part; done
	MYPYPATH=.types $(VENV)/bin/mypy -p seg.infer -p seg.train -p seg.export
	$(VENV)/bin/lint-imports

$(DEMO)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DEMO)
	$(DEMO)/bin/python $(INSTALL) .
	touch $@

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python $(INSTALL) --editable ".[train,codecs,dicomweb,rtstruct,serve,dev]"
	# A Triton server for its tests, which skip without it. The wheel asks for NumPy 1 for a part that is not used.
	-$(VENV)/bin/python $(INSTALL) --no-deps nvidia-pytriton
	# TensorRT-RTX (96 MB) parses and builds on a processor; the tests of exported forms skip without it.
	-$(VENV)/bin/python $(INSTALL) --no-deps tensorrt-rtx-cu13-libs==1.7.1.116 tensorrt-rtx-cu13-bindings==1.7.1.116
	touch $@

clean:
	rm -rf $(DEMO) $(VENV) .types demo build *.egg-info
