"""What holds for all tests."""

from __future__ import annotations

import os

# The tests, and what they start, run Python source unless the compiled modules are asked for: before anything of ours is imported.
os.environ.setdefault("QNETPY_COMPILED", "off")
