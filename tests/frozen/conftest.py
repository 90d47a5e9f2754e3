"""The contracts' tests share the token files of the processes' tests."""

from tests.processes.conftest import cache

__all__ = ["cache"]
