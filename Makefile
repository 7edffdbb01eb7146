# What people and CI call. Everything else is in scripts/ (plain sh) and works without make.
.POSIX:
.PHONY: help demo dev test check bench chaos down clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "%-8s %s\n", $$1, $$2 }' Makefile

demo: ## fresh clone to answered calls: set up, start, deploy, call
	sh scripts/demo

dev: ## set up, then run the whole stack in the foreground
	sh scripts/setup
	.venv/bin/bananas images build
	exec .venv/bin/bananas dev

test: ## all tests, with coverage
	sh scripts/test

check: ## linters, formatter, types, import contracts
	sh scripts/setup --dev
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports

bench: ## measure latency and throughput on this machine
	sh scripts/setup --dev
	.venv/bin/python -m runner images build
	.venv/bin/python -m tests.bench

chaos: ## kill things under load, long
	sh scripts/setup --dev
	.venv/bin/python -m runner images build
	BANANAS_CHAOS_OUTAGE_S=40 BANANAS_CHAOS_LEASE_S=30 .venv/bin/python -m pytest --timeout=600 tests/chaos

down: ## stop the dockerd that the set-up started
	sh scripts/down

clean: ## remove .venv, caches and reports (images and state stay)
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage .coverage.* htmlcov dist build
	find bananas gateway runner tests functions -name __pycache__ -type d -prune -exec rm -rf {} +
