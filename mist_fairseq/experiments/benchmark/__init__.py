"""What the scripts/benchmark_*.py and scripts/compare_engines.py measure."""
