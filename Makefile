.PHONY: check gpu clean

check: ## what is worth running before a commit
	ruff check . && ruff format --check . && mypy && pytest

gpu: ## all that a machine with a GPU can say about cvops, in gpu-report.txt: eight minutes
	python -m benchmarks.gpu_day

clean: ## forget compiled kernels and other leftovers
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
