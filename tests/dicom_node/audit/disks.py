"""A disk that takes nothing more, by a limit of the kernel on this process's files; no root needed."""

import resource
from contextlib import contextmanager


@contextmanager
def files_end_at(size):
    """No file of this process grows beyond `size` bytes meanwhile."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
