"""The reference backend: runs spec/reference.py. Slow, complete, always present, and right by definition."""

from datong.backends.reference.backend import ReferenceBackend

__all__ = ["ReferenceBackend", "create"]


def create() -> ReferenceBackend:
    """Make the backend as the registry offers it: without fused operators, so that programs show their core form."""
    return ReferenceBackend()
