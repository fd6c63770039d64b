"""What a model that can't be loaded raises."""

from __future__ import annotations


class ModelError(Exception):
    """The model can't be loaded: files missing, unreadable, or of an architecture not supported. One clear line."""
