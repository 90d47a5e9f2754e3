"""Trainers of the Kuramoto State-Space language models v2, v3 and v4."""
