"""What holds for every test."""

import os
import tempfile

import pytest
from hypothesis import settings

# Machines are shared and noisy: a slow example is not a wrong one.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")


@pytest.fixture(scope="session", autouse=True)
def own_state():
    """The registry of a person's real runs must not learn of tests."""
    with tempfile.TemporaryDirectory(prefix="solorun-state-", ignore_cleanup_errors=True) as place:
        os.environ["SOLORUN_STATE"] = place
        yield place
