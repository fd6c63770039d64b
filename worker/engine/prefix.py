"""Keys of full pages: what the prefix cache finds them by.

A page's key is a hash of its tokens and of the key of the page before, so one key stands for all tokens up to the
page's end. The hash is keyed with a secret of this process: nobody can make a prompt that is taken for another's. 128
bits are enough then to compare no tokens.
"""

from __future__ import annotations

import os
from array import array
from hashlib import blake2b

from worker.engine.sequence import Sequence

_KEY_BYTES = 16


class PrefixKeys:
    """Makes the keys of sequences' pages; a sequence keeps its own, and they are made once."""

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._secret = os.urandom(32)

    def of(self, sequence: Sequence, count: int) -> list[bytes]:
        """The keys of its first `count` pages, or of more; these are full."""
        keys = sequence.keys
        while len(keys) < count:
            tokens = sequence.tokens(len(keys) * self._page_size, (len(keys) + 1) * self._page_size)
            assert len(tokens) == self._page_size, "a page that is not full has no key"
            before = keys[-1] if keys else b""
            named = blake2b(before + array("i", tokens).tobytes(), key=self._secret, digest_size=_KEY_BYTES)
            keys.append(named.digest())
        return keys
