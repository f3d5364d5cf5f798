"""What `benchmarks/gpu.py` runs: measurements on a device, each framework in processes of its own."""
