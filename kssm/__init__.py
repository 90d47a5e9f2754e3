"""Trainers of the Kuramoto State-Space language models v2 and v3."""
