# What people and CI call. Everything else is in scripts/ (plain sh) and works without make.
.POSIX:
.PHONY: help demo dev test test-long test-bare wheels check bench chaos chaos-long down clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-10s %s\n", $$1, $$2 }' Makefile

demo: ## fresh clone to answered calls: set up, start, deploy, call
	sh scripts/demo

dev: ## set up, then run the whole stack in the foreground
	sh scripts/run .venv/bin/bananas dev

test: ## all tests, with coverage
	sh scripts/test

test-long: ## the property tests with many more examples; half an hour or more
	BANANAS_HYPOTHESIS=long sh scripts/run --dev .venv/bin/python -m pytest --timeout=0 tests/property

test-bare: ## the set-up and the systemd units on bare Debian roots, in containers; needs root, mmdebstrap and a package index
	sh scripts/run --dev .venv/bin/python -m pytest --timeout=900 -v tests/setup/bare.py tests/setup/debian.py tests/setup/units.py

wheels: ## collect every package for machines without an index, see BANANAS_WHEELS in docs/setup.md
	sh scripts/wheels

check: ## linters, formatter, types, import contracts
	sh scripts/setup --dev --without-engine
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports

bench: ## measure beside references, see docs/performance.md; ARGS="--help" lists parts; half an hour
	sh scripts/run --dev .venv/bin/python -m tests.bench $(ARGS)

chaos: ## kill things under load and tell what became of every job, see docs/chaos.md; 12 minutes
	BANANAS_CHAOS_SIZE=$${BANANAS_CHAOS_SIZE:-full} BANANAS_CHAOS_OUTAGE_S=40 BANANAS_CHAOS_LEASE_S=30 sh scripts/run --dev .venv/bin/python -m pytest --timeout=600 -v tests/chaos

chaos-long: ## the storms with 200,000 jobs, half an hour
	BANANAS_CHAOS_SIZE=long sh scripts/run --dev .venv/bin/python -m pytest --timeout=3600 -v tests/chaos/test_queue_storm.py tests/chaos/test_linear.py tests/chaos/test_platform_storm.py

down: ## stop the engine that the set-up started
	sh scripts/down

clean: ## remove .venv, caches and reports (images and state stay)
	rm -rf .venv .bench .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage .coverage.* htmlcov dist build
	find bananas gateway runner tests functions -name __pycache__ -type d -prune -exec rm -rf {} +
