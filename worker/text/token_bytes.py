"""One token's bytes in the text. A tokenizer and an id go in, bytes come out; strings of tokens are another file's.

    text(ids) = utf8(bytes(id_0) + bytes(id_1) + ...)         special tokens and unknown ids: no bytes

Bytes rather than strings, because a token may hold part of a character, and only bytes say which part: a decoded
U+FFFD does not tell a character still to come from one that never will, nor either from a U+FFFD the model wrote.

The three kinds of decoder, after what a token's string stands for:

byte-level     each character is one byte, by GPT-2's alphabet; bytes that are no UTF-8 become one U+FFFD for each
               longest beginning of a character, as in `tokenizers` and in Python's "replace"
byte fallback  `<0xE4>` is a byte, all else is text; bytes that are no UTF-8 become one U+FFFD each, as in
               SentencePiece. (`tokenizers` makes U+FFFD of good characters too, where they share a run of such bytes
               with a bad one, even a later one. A stream that takes nothing back can't; there alone we differ.)
word-level,    text, found by decoding the token behind another: "▁the" is " the"
metaspace

This stands on a decoder that looks at one token at a time but for the first, which may lose a space: true for those of
all the models served here. `TokenBytes` checks it against the tokenizer's own `decode` when it is made.
"""

from __future__ import annotations

import codecs
import json
import re
from typing import Any

from tokenizers import Tokenizer

from worker.text.files import ModelFilesInvalid

EACH_BYTE = "slipstream.each_byte"  # a codec error handler: one U+FFFD for each byte that is no UTF-8
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_ANCHOR = "a"  # a token's text in mid-text is what it adds behind this one
_SAMPLED = 256  # tokens that the check at the start decodes


def _each_byte(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error(EACH_BYTE, _each_byte)


class TokenBytes(dict[int, bytes]):
    """`table[id]`: the bytes token `id` adds to a text that has begun. Found when first asked for, then kept.

    Special tokens and ids without a token (a model's vocabulary is often padded past the tokenizer's) have none.
    """

    errors: str  # the codec error handler by which this tokenizer shows bytes that are no UTF-8

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises ModelFilesInvalid where the decoder does not work one token at a time."""
        super().__init__()
        self._tokenizer = tokenizer
        kinds = _kinds(json.loads(tokenizer.decoder.__getstate__())) if tokenizer.decoder else set()
        self._byte_level = "ByteLevel" in kinds
        self._byte_fallback = "ByteFallback" in kinds
        self.errors = EACH_BYTE if self._byte_fallback else "replace"
        added = tokenizer.get_added_tokens_decoder().values()
        self._special = frozenset(token.content for token in added if token.special)
        self._check()

    def __missing__(self, token_id: int) -> bytes:
        token = self._token(token_id)
        found = self[token_id] = b"" if token is None else self._in_text(token)
        return found

    def is_text(self, token_id: int) -> bool:
        """Whether the id is of a token that takes part in the text: neither special nor unknown."""
        return self._token(token_id) is not None

    def opening(self, token_id: int) -> bytes:
        """The bytes the token adds as the first of a text; a tokenizer that marks words by a space drops it there."""
        token = self._token(token_id)
        if token is None:
            return b""
        data = self._in_text(token)
        if self._byte_level or (self._byte_fallback and data >= b"\x80"):
            return data
        return self._decode([token]).encode()

    def _token(self, token_id: int) -> str | None:
        try:
            token = self._tokenizer.id_to_token(token_id)
        except OverflowError:  # negative, or past 32 bits
            return None
        return None if token is None or token in self._special else token

    def _in_text(self, token: str) -> bytes:
        if self._byte_level:
            try:
                return bytes([_BYTE_OF[char] for char in token])
            except KeyError:  # an added token is plain text
                return token.encode()
        if self._byte_fallback and (byte := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(byte[1], 16)])
        return self._decode([_ANCHOR, token])[len(self._decode([_ANCHOR])) :].encode()

    def _decode(self, tokens: list[str]) -> str:
        decoder = self._tokenizer.decoder
        return decoder.decode(tokens) if decoder else " ".join(tokens)

    def _check(self) -> None:
        """Decode a sample of the vocabulary both ways, leaving out the single bytes, which rarely form characters."""
        size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        sample = [i for i in range(0, size, max(1, size // _SAMPLED)) if self.is_text(i) and _is_utf8(self[i])]
        expected = self._tokenizer.decode(sample, skip_special_tokens=True)
        data = b"".join([self.opening(i) if n == 0 else self[i] for n, i in enumerate(sample)])
        if data.decode() != expected:
            raise ModelFilesInvalid(
                "tokenizer.json: the decoder does not decode one token at a time, so text can't be streamed; expected "
                f"a byte-level, byte-fallback, metaspace or word-level one, got {str(self._tokenizer.decoder)[:200]}"
            )


def _kinds(decoder: dict[str, Any]) -> set[str]:
    return {decoder["type"]}.union(*(_kinds(part) for part in decoder.get("decoders", ())))


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 characters are their own byte, the others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
