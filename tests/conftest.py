"""What holds for every test."""

from hypothesis import settings

# Machines are shared and noisy: a slow example is not a wrong one.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")
