"""Files that are there as a whole, or as they were."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress

__all__ = ["replace_file"]


def replace_file(folder: str, name: str, content: bytes) -> None:
    """Put a file in the place of another: whenever the machine fails, one or the other is there, whole."""
    # Made with mode 0600.
    descriptor, temporary = tempfile.mkstemp(prefix=f"{name}.", suffix=".new", dir=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, os.path.join(folder, name))
    except BaseException:  # whatever it is, nothing is left lying about
        with suppress(OSError):
            os.unlink(temporary)
        raise
    # Some file systems (Windows drives in WSL) cannot, and keep the new name all the same.
    with suppress(OSError):
        directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
