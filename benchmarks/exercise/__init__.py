"""What `benchmarks/new_attack.py` is made of."""
