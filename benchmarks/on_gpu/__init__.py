"""What `benchmarks/gpu.py` runs, each framework in processes of its own."""
