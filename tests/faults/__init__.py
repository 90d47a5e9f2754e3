"""Attacks: what is done to lock, checkpoints and files, and what must be true afterwards.

Modules without `test_` hold an attack each; `make test` runs a seeded sample of it, `benchmarks/torture.py` all of it.
"""
