"""Imports torch without the garbage collector; whatever of this package is imported first imports this before.

Almost all that importing torch makes stays for good. Looking through it takes 0.2 s of the 2.4 of the import, and some
milliseconds of a step now and then, so what is there at its end is no longer looked at (gc.freeze).
"""

import gc
import sys

if "torch" not in sys.modules:
    _was_enabled = gc.isenabled()
    gc.disable()
    try:
        import torch  # noqa: F401
    finally:
        gc.freeze()
        if _was_enabled:
            gc.enable()
