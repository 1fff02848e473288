"""The same shops as in the crash tests."""

from tests.crash.conftest import shop

__all__ = ["shop"]
