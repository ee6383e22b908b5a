# SPDX-License-Identifier: Apache-2.0
# Run as root on Debian: every target installs what it needs first, and costs next to nothing when that is there.

# What a relay needs to run exitprint, and what the lab needs besides.
PACKAGES := python3 python3-venv python3-bpfcc nftables iptables conntrack iproute2 kmod util-linux \
            procps wireguard-go wireguard-tools ca-certificates
# What boots a stock kernel: virtme-ng (locked) starts qemu on this root file system and asks file(1) for the version.
VM_PACKAGES := qemu-system-x86 udev file
# What checks rules and routes, and what the lab's alerts run on: the programs only, their services stay off.
STACK_PACKAGES := prometheus prometheus-alertmanager victoria-metrics
# What tries the pages as their readers do.
WEB_PACKAGES := curl openssl chromium chromium-driver fonts-dejavu-core

# What builds the packages, and what tries them in systems of their own.
DIST_PACKAGES := dpkg-dev debhelper dh-python
DEBIAN_PACKAGES := $(DIST_PACKAGES) lintian mmdebstrap debian-archive-keyring systemd-container man-db

MAPPING ?= persistent
ARGS ?=
TOOLS := .venv/bin
PYTHON := $(TOOLS)/python
C_FILES := $(wildcard bpf/*.c bpf/*.h)
SCRIPTS = $(shell grep -rlE '^\#!/bin/(ba)?sh|^\#!/usr/bin/env bash' .ci debian deploy tests/system)

.DELETE_ON_ERROR:
.SUFFIXES:
.PHONY: help packages env vm-env stack-env web-env lab lab-stack lab-fleet test kernels lint format transcript generate bench fuzz soak lock clean \
        calibrate mutants dist-env dist debian-env test-debian test-package

help:
	@echo 'make lab [MAPPING=NAME] [ARGS=...]  a relay on this machine, and the verdict on it'
	@echo 'make lab-stack [ARGS=--keep]         a relay that is broken and repaired, with the alerts on it'
	@echo 'make lab-fleet [ARGS=--engine victoria-metrics]  four relays that share a secret, found and repaired'
	@echo 'make test                           every check, with three stock Debian kernels in VMs'
	@echo 'make kernels                        what holds on every kernel, from 5.10 to the newest'
	@echo 'make bench                          what watching costs'
	@echo 'make fuzz [ARGS=SECONDS]             readers with what nobody would write'
	@echo 'make soak [ARGS=SECONDS]             an hour of churn: memory, descriptors, threads'
	@echo 'make calibrate                      false alarms, power and time to the verdict'
	@echo 'make mutants [ARGS="--sample N"]     what the tests do not notice'
	@echo 'make calibrate                      false alarms, power and time to the verdict'
	@echo 'make mutants [ARGS=--sample N]      what the tests do not notice'
	@echo 'make dist                           .deb, wheel and sdist, into dist/'
	@echo 'make test-debian                    the unit tests with the Python packages of Debian 12 and 13'
	@echo 'make test-package                   the .deb in fresh systems of Debian 12 and 13, under systemd'
	@echo 'make env | lint | format | transcript | generate | lock | clean'

packages:
	@deploy/debian-packages $(PACKAGES)

# Rewritten only when Python became another one, so that the environment follows it.
.cache/python: packages
	@mkdir -p .cache
	@/usr/bin/python3 -V | cmp -s - $@ || /usr/bin/python3 -V >$@

.venv/.ready: .cache/python requirements-dev.lock pyproject.toml deploy/python-environment
	@echo '  making the Python environment .venv'
	@deploy/python-environment
	@touch $@

env: .venv/.ready

vm-env: env
	@deploy/debian-packages $(VM_PACKAGES)

stack-env: env
	@deploy/packages-without-services $(STACK_PACKAGES)

web-env: env
	@deploy/debian-packages $(WEB_PACKAGES)

dist-env: env
	@deploy/debian-packages $(DIST_PACKAGES)

debian-env: env
	@deploy/debian-packages $(DEBIAN_PACKAGES)

lab: env
	@.venv/bin/exitprint lab --mapping $(MAPPING) $(ARGS)

lab-stack: stack-env
	@$(PYTHON) -m detector.lab.stack $(ARGS)

lab-fleet: stack-env
	@$(PYTHON) -m detector.lab.fleet $(ARGS)

test: vm-env stack-env web-env debian-env lint
	@$(PYTHON) -m pytest -m 'not package' $(ARGS)

# The same facts on every kernel of the matrix.
kernels: vm-env
	@EXITPRINT_KERNELS=all $(PYTHON) -m pytest tests/system/vm $(ARGS)

dist: dist-env
	@$(PYTHON) -m tools.dist

test-debian: debian-env
	@$(PYTHON) -m pytest -m package tests/system/debian/test_unit_suites.py $(ARGS)

test-package: debian-env
	@$(PYTHON) -m pytest -m package tests/system/debian/test_package.py tests/system/debian/test_container.py $(ARGS)

lint: env
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m ruff check --quiet .
	@$(PYTHON) -m mypy
	@$(TOOLS)/lint-imports --no-cache --no-logo >.cache/contracts || { cat .cache/contracts; exit 1; }
	@$(TOOLS)/clang-format --dry-run --Werror $(C_FILES)
	@$(TOOLS)/shellcheck $(SCRIPTS)
	@$(TOOLS)/reuse lint --quiet || $(TOOLS)/reuse lint

format: env
	@$(PYTHON) -m ruff format .
	@$(PYTHON) -m ruff check --fix .
	@$(TOOLS)/clang-format -i $(C_FILES)

# What the person on call sees and types, played on a relay of this machine.
transcript: stack-env
	@$(PYTHON) -m tests.system.client.transcript $(ARGS)

# False alarms, power and time to the verdict, on relays as they are: docs/calibration.md.
calibrate: env
	@$(PYTHON) -m tools.calibrate $(ARGS)

# What the tests do not notice: ARGS="--sample N" for a few mutants of each module.
mutants: env
	@$(PYTHON) -m tools.mutants $(ARGS)

# Pages that are made from code and kept beside it.
generate: env
	@$(PYTHON) -m tools.metrics_page
	@$(PYTHON) -m tools.rules
	@$(PYTHON) -m tools.schemas
	@$(PYTHON) -m tools.config_pages
	@$(PYTHON) -m dashboards

fuzz: env
	@$(PYTHON) -m tools.fuzz $(ARGS)

soak: env
	@$(PYTHON) -m tools.soak $(ARGS)

bench: env
	@$(PYTHON) -m tools.bench $(ARGS)

# The newest versions that pyproject.toml allows and every supported Python takes, with the hashes of every file.
UV := .cache/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade --fork-strategy fewest \
      --no-config --no-header --no-emit-index-url --no-emit-find-links
# REUSE-IgnoreStart
lock: packages
	@/usr/bin/python3 -m venv .cache/lock
	@.cache/lock/bin/python -m pip --quiet install uv
	@$(UV) --output-file requirements.lock pyproject.toml
	@$(UV) --output-file requirements-dev.lock --extra dev --constraint requirements.lock pyproject.toml
	@sed -i '1i \# SPDX-License-Identifier: Apache-2.0\n# Made by `make lock`.' requirements.lock requirements-dev.lock
# REUSE-IgnoreEnd

clean:
	rm -rf .venv .cache build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
