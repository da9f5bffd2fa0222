"""A backend that lives in a child process, reached over a socket: one PyTorch adapter per process, without torch here.

`RemoteBackend(device, "module:function", arguments)` imports and calls the function in the child, which returns the
Backend that does the work. The child starts with the first question that needs it.
"""

from datong.backends.worker.backend import RemoteBackend

__all__ = ["RemoteBackend"]
