# llmproxy: `make help` lists what there is. Nothing needs to be installed first but Python 3.11.
.DEFAULT_GOAL := help
SHELL := /bin/sh
VENV ?= .venv
PY := $(VENV)/bin/python
STAMPS := $(VENV)/.stamps
IMAGE ?= llmproxy
BASE_IMAGE ?= python:3.13-slim
TESTS ?= tests
ARGS ?=
EXTRAS ?=
export VENV PORT LISTEN

# A plain editable install hides the twisted/plugins folder from Twisted; "compat" shows it.
INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check --config-settings editable_mode=compat

.PHONY: help run env test coverage fuzz explore load chaos soak mutate lint format bench test-vllm image wheelhouse lock audit sbom \
    secrets clean docs up-coder up-chat up-qwen7b logs stop-all

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

run: $(STAMPS)/run env ## serve on :8000 (PORT=, LISTEN=): Compose's models with Docker, demo models without
	@exec scripts/run.sh $(ARGS)

env: ## write .env with a fresh key, if there is none
	@scripts/make_env.sh

test: $(STAMPS)/test ## all tests, with branch coverage (TESTS=, ARGS=); Docker tests need an engine
	$(PY) -m pytest $(TESTS) -m "not vllm" --cov --cov-branch --cov-report=term $(ARGS)

# Whether they pass is for `make test`: measured, everything is slower, and a few that hold times fail on a busy machine.
coverage: $(STAMPS)/test ## all tests, what they start measured too; fails under 95 % of branches (TESTS=, ARGS=)
	@rm -rf build/coverage && mkdir -p build/coverage
	$(PY) -m coverage run --rcfile=tests/coverage.ini -m pytest $(TESTS) -m "not vllm" $(ARGS) || [ $$? -eq 1 ]
	$(PY) -m coverage combine --rcfile=tests/coverage.ini --quiet
	$(PY) -m coverage report --rcfile=tests/coverage.ini
	$(PY) -m tests.integration.measured

fuzz: $(STAMPS)/test ## look for inputs that break a parser (SECONDS=60, SEED= of the first, ONLY=requests,json)
	$(PY) -m tests.fuzz --seconds $(or $(SECONDS),60) $(if $(SEED),--seed $(SEED)) $(if $(ONLY),--only $(ONLY))

explore: $(STAMPS)/test ## every order of what may happen to backends on a GPU (ARGS=--depth 8 --seconds 600 three)
	$(PY) -m tests.model $(ARGS)

load: $(STAMPS)/test ## crowds of clients in full: 2,000 streams, 10,000 held, ... (ARGS="streams silent --part 0.1")
	$(PY) -m tests.integration.load $(ARGS)

chaos: $(STAMPS)/test ## break everything around a proxy at random (ARGS=--seed 7 --seconds 60 --seeds 20 --runtime process)
	$(PY) -m tests.integration.chaos $(ARGS)

soak: $(STAMPS)/test ## two hours of all kinds of clients: memory, files, timers, latency (ARGS="--minutes 70 --plot FILE")
	$(PY) -m tests.integration.soak $(ARGS)

mutate: $(STAMPS)/mutation ## put faults into the core and see its unit tests find them (ARGS="--only headers --jobs 4")
	$(PY) -m tests.integration.mutation $(ARGS)

lint: $(STAMPS)/lint ## types, style and format
	$(PY) -m mypy llmproxy twisted/plugins/llmproxy_plugin.py scripts tests bench
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

secrets: $(PY) ## look for secrets in the tree and in Git's history
	@$(PY) scripts/secret_scan.py

format: $(STAMPS)/lint ## put the format right
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: $(STAMPS)/bench ## measure the proxy beside its peers (ARGS=--quick, --only A,B, --profile, --help)
	$(PY) -m bench $(ARGS)

test-vllm: $(STAMPS)/test ## the tests that need a real vLLM (slow; not part of `make test`)
	$(PY) -m pytest tests -m vllm $(ARGS)

image: ## build the container image (IMAGE=, BASE_IMAGE=, EXTRAS=otel)
	docker build --build-arg BASE_IMAGE=$(BASE_IMAGE) --build-arg EXTRAS="$(EXTRAS)" \
	    --build-arg SOURCE_DATE_EPOCH=$(or $(SOURCE_DATE_EPOCH),$(shell git log -1 --format=%ct 2>/dev/null),315532800) \
	    -t $(IMAGE) .

lock: $(STAMPS)/supply ## renew requirements/*.lock from setup.cfg (ARGS=--upgrade for newer versions)
	@$(PY) scripts/lock.py $(ARGS)

audit: $(STAMPS)/supply ## look up known vulnerabilities of what is locked, where the database can be had
	@$(PY) scripts/audit.py

sbom: $(STAMPS)/run $(STAMPS)/supply ## write build/sbom.cdx.json, a bill of materials of what is locked for the image
	@mkdir -p build && $(VENV)/bin/cyclonedx-py requirements --output-reproducible --output-format JSON \
	    --output-file build/sbom.cdx.json requirements/runtime.lock && echo "Wrote build/sbom.cdx.json."

wheelhouse: $(STAMPS)/run ## download what the image needs, for a build with no network (IMAGE_PYTHON=3.13)
	for each in build runtime http2 $(EXTRAS); do \
	    $(PY) -m pip download --quiet --disable-pip-version-check --dest deploy/wheelhouse --only-binary=:all: \
	    --implementation cp --python-version $(or $(IMAGE_PYTHON),3.13) \
	    $(foreach glibc,2014 _2_17 _2_28 _2_34,--platform manylinux$(glibc)_$(shell uname -m)) \
	    --require-hashes -r requirements/$$each.lock || exit 1; done

up-coder: env ## the launcher and the coding model up, the other models down (deploy/scripts/switch)
	@deploy/scripts/switch coder3b

up-chat: env ## the launcher and the chat model up, the other models down
	@deploy/scripts/switch chat

up-qwen7b: env ## the launcher and the quantized Qwen 7B up, the other models down
	@deploy/scripts/switch qwen7b

logs: ## follow the launcher's log (LINES=100)
	@docker logs --tail $(or $(LINES),100) -f launcher

stop-all: ## stop every container of the stack; nothing is removed
	@deploy/scripts/switch stop-all

docs: $(STAMPS)/docs ## build the documentation into build/site, strictly (ARGS=)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet $(ARGS)
	@echo "Built build/site/index.html."

clean: ## remove what was made here, but .env
	rm -rf $(VENV) build dist *.egg-info .coverage .coverage.* htmlcov .mypy_cache .ruff_cache .pytest_cache \
	    .hypothesis _trial_temp* twistd.log twistd.pid deploy/wheelhouse/*.whl
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(PY):
	@python=$$(scripts/find_python.sh) && echo "Making $(VENV) with $$python ..." >&2 && \
	    { "$$python" -m venv $(VENV) || { rm -rf $(VENV); \
	      echo "That Python cannot make virtual environments (Debian, Ubuntu: apt install python3-venv)." >&2; exit 1; }; }

# Installing again is only needed when what is to be installed has changed.
$(STAMPS)/run: setup.cfg pyproject.toml | $(PY)
	@echo "Installing llmproxy into $(VENV) ..." >&2
	@$(INSTALL) -e '.[nvml]'
	@mkdir -p $(STAMPS) && touch $@

# With LOCKED=1, as continuous integration has it: what is in the lock, and nothing else.
$(STAMPS)/test: setup.cfg pyproject.toml | $(PY)
	@echo "Installing llmproxy and what its tests need into $(VENV) ..." >&2
	@[ -z "$(LOCKED)" ] || $(PY) -m pip install --quiet --disable-pip-version-check --require-hashes \
	    -r requirements/build.lock
	@[ -z "$(LOCKED)" ] || $(PY) -m pip install --quiet --disable-pip-version-check --require-hashes \
	    -r requirements/test.lock
	@$(INSTALL) $(if $(LOCKED),--no-deps --no-build-isolation -e .,-e '.[test]')
	@mkdir -p $(STAMPS) && touch $@ $(STAMPS)/run

$(STAMPS)/mutation: setup.cfg pyproject.toml | $(PY)
	@echo "Installing llmproxy and what mutates it into $(VENV) ..." >&2
	@[ -z "$(LOCKED)" ] || $(PY) -m pip install --quiet --disable-pip-version-check --require-hashes \
	    -r requirements/build.lock
	@[ -z "$(LOCKED)" ] || $(PY) -m pip install --quiet --disable-pip-version-check --require-hashes \
	    -r requirements/test.lock -r requirements/mutation.lock
	@$(INSTALL) $(if $(LOCKED),--no-deps --no-build-isolation -e .,-e '.[test,mutation]')
	@mkdir -p $(STAMPS) && touch $@ $(STAMPS)/run $(STAMPS)/test

$(STAMPS)/docs: setup.cfg pyproject.toml | $(PY)
	@echo "Installing llmproxy and what its documentation needs into $(VENV) ..." >&2
	@[ -z "$(LOCKED)" ] || $(PY) -m pip install --quiet --disable-pip-version-check --require-hashes \
	    -r requirements/build.lock
	@[ -z "$(LOCKED)" ] || $(PY) -m pip install --quiet --disable-pip-version-check --require-hashes \
	    -r requirements/docs.lock
	@$(INSTALL) $(if $(LOCKED),--no-deps --no-build-isolation -e .,-e '.[docs]')
	@mkdir -p $(STAMPS) && touch $@ $(STAMPS)/run

$(STAMPS)/supply: setup.cfg pyproject.toml | $(PY)
	@echo "Installing what locks and audits llmproxy's dependencies into $(VENV) ..." >&2
	@[ -z "$(LOCKED)" ] || $(PY) -m pip install --quiet --disable-pip-version-check --require-hashes \
	    -r requirements/supply.lock
	@[ -n "$(LOCKED)" ] || $(INSTALL) -e '.[supply]'
	@mkdir -p $(STAMPS) && touch $@ $(STAMPS)/run

$(STAMPS)/bench: setup.cfg pyproject.toml | $(PY)
	@echo "Installing llmproxy and what its benchmark needs into $(VENV) ..." >&2
	@$(INSTALL) -e '.[bench]'
	@mkdir -p $(STAMPS) && touch $@ $(STAMPS)/run

$(STAMPS)/lint: setup.cfg pyproject.toml | $(PY)
	@echo "Installing llmproxy and what its checks need into $(VENV) ..." >&2
	@$(INSTALL) -e '.[test,lint]'
	@mkdir -p $(STAMPS) && touch $@ $(STAMPS)/run $(STAMPS)/test
