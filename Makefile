.PHONY: check clean

check: ## what is worth running before a commit
	ruff check . && ruff format --check . && mypy && pytest

clean: ## forget compiled kernels and other leftovers; needed after an edit of cvops/_cpu/_simd.py
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
