"""What the table of operations raises: a backend that can't be had here."""

from __future__ import annotations


class KernelsUnavailable(Exception):
    """A backend's kernels can't be had here; says why."""
