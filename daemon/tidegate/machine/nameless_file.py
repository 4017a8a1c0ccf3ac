"""A file without a name, for what a child is given or leaves and no other process may see."""

from __future__ import annotations

import os
import sys
from typing import BinaryIO

if sys.platform != "linux":  # where no file is in memory; it brings bz2, lzma and hashlib along
    import tempfile


def nameless_file() -> BinaryIO:
    """Open a file in memory where the system can. Raises OSError."""
    if sys.platform == "linux":
        return os.fdopen(os.memfd_create("tidegate"), "w+b")
    else:
        return tempfile.TemporaryFile()
