"""What `tools/benchmark.py` measures, a module for each subject."""
