"""One job's output as text. Token ids go in as the engine draws them; pieces come out that may be published.

What holds of every stream, however its tokens were cut into pushes:
- The texts of all pieces, joined, are the text of all ids released, exactly: a token goes out with its whole text, or
  waits.
- Nothing released is ever taken back: what could still become a stop string, or is part of a character, waits.
- Only at a stop string do they part: ids run to the token that completed it, text to the character before it.

The text of an output is what its tokens add to the prompt's:

    text = utf8(unfinished + bytes(id_0) + bytes(id_1) + ...)        (token_bytes.py has `bytes`)

`unfinished` are the at most three bytes of a character that the prompt leaves open (a prompt given as ids may be cut
there); the output completes it. In mid-text a token keeps its space, also the output's first ("▁yes" after "[/INST]" is
" yes"); only behind a prompt that has no text at all, such as a lone <s>, the output opens the text and its first token
loses the space that the tokenizer's decoder strips there. Special tokens have no text, but their ids are released.
"""

from __future__ import annotations

from codecs import utf_8_decode
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from worker.text.stops import StopStrings
from worker.text.token_bytes import TokenBytes


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens to publish next, and what each added to the text: as many texts as ids, any of them may be empty.

    A character is the text of the token that completes it; what a stop string cuts off is missing.
    """

    token_ids: list[int]
    texts: list[str]

    @property
    def text(self) -> str:
        """The tokens' text in one."""
        return "".join(self.texts)


class TextStream:
    """A job's tokens on their way out. Made by `TextModel.stream`.

    Held back are only the tokens that reach into the longest end of the text that is a proper prefix of a stop string,
    and into an unfinished character (at most three bytes). Cost: a look-up and a decode of a few bytes for each token,
    and a look-up for each character where there are stop strings; nothing grows with the length of the output.
    """

    stopped: bool  # a stop string completed: the output is at its end, later pushes are ignored

    def __init__(
        self, table: TokenBytes, prompt_ids: Sequence[int], stops: StopStrings | None = None, min_tokens: int = 0
    ) -> None:
        """`min_tokens`: a stop string that a token before the min_tokens-th completes is text like any other."""
        self.stopped = False
        self._table = table
        self._stops = stops
        self._min_tokens = min_tokens
        self._state = 0  # of the stop strings' automaton, after all characters so far
        self._tokens = 0  # tokens so far
        self._characters = 0  # whole characters so far
        self._ids: list[int] = []  # tokens held back
        self._texts: list[str] = []  # what each of them added
        # (tokens, characters) so far, wherever among the held the text may be parted: at the end of a character
        self._boundaries: deque[tuple[int, int]] = deque()
        self._opens_text, self._pending = _end_of_prompt(table, prompt_ids)
        self._silent = True  # no token of the output added a byte yet: what is pending is the prompt's
        self._closed = False

    @property
    def offset(self) -> int:
        """Tokens released so far, replayed ones among them."""
        return self._tokens - len(self._ids)

    def push(self, token_ids: Sequence[int]) -> Piece:
        """Take the next tokens; return what may be published now. Any id will do; one without a token has no text."""
        for token_id in token_ids:
            if self._closed:
                break
            self._take(token_id)
        return self._release()

    def finish(self) -> Piece:
        """The rest, at the end of the output; an unfinished character becomes U+FFFD. Later pushes are ignored."""
        if not self._closed:
            self._closed = True
            if not self._silent:
                self._add(utf_8_decode(self._pending, self._table.errors, True)[0])
        return self._release()

    def replay(self, token_ids: Sequence[int]) -> None:
        """Take tokens that an earlier owner published, before any push: as if released here, but nothing comes out.

        They may complete a stop string. Then `stopped` is set: the output is complete as it was published.
        """
        assert not self._ids, "tokens are held back: replay comes before push"
        before = self._tokens
        for token_id in token_ids:
            if self._closed:
                break
            self._take(token_id)
            self._ids, self._texts = [], []
        self._boundaries.clear()
        self._tokens = before + len(token_ids)

    def _take(self, token_id: int) -> None:
        data = self._first_bytes(token_id) if self._silent else self._table[token_id]
        if self._pending:
            data = self._pending + data
        text, self._pending = _characters(data, self._table.errors)
        self._tokens += 1
        self._ids.append(token_id)
        self._add(text)
        if not self._pending or self._silent:
            self._boundaries.append((self._tokens, self._characters))

    def _first_bytes(self, token_id: int) -> bytes:
        if not self._opens_text:
            data = self._table[token_id]
        else:
            data = self._table.opening(token_id)
            self._opens_text = not self._table.is_text(token_id)
        self._silent = not data
        return data

    def _add(self, text: str) -> None:
        """Append what the latest token added; where that completes a stop string, end before it."""
        self._texts.append(text)
        self._characters += len(text)
        if self._stops is None:
            return
        state, following, ended = self._state, self._stops.next, self._stops.ended
        for position, char in enumerate(text, start=1):
            state = following[state].get(char, 0)
            if ended[state] and self._tokens >= self._min_tokens:
                self.stopped = self._closed = True
                # Less than 0 only where it began in what another owner published: that can't be taken back.
                self._cut(max(0, sum(map(len, self._texts)) - len(text) + position - ended[state]))
                return
        self._state = state

    def _cut(self, length: int) -> None:
        """Leave only the first `length` characters of the held text."""
        for index, text in enumerate(self._texts):
            self._texts[index] = text[:length]
            length -= len(self._texts[index])

    def _release(self) -> Piece:
        """What nothing can change any more: all up to the last boundary before a stop string that may be forming."""
        if self._closed:
            # At the end an unfinished character may have come out behind the last token: it is that token's.
            texts = self._texts[: len(self._ids)]
            if texts:
                texts[-1] += "".join(self._texts[len(self._ids) :])
            piece = Piece(self._ids, texts)
            self._ids, self._texts = [], []
            return piece
        settled = self._characters - (self._stops.held[self._state] if self._stops else 0)
        offset = reached = self.offset
        while self._boundaries and self._boundaries[0][1] <= settled:
            reached, _ = self._boundaries.popleft()
        ready = reached - offset
        piece = Piece(self._ids[:ready], self._texts[:ready])
        del self._ids[:ready], self._texts[:ready]
        return piece


def _end_of_prompt(table: TokenBytes, prompt_ids: Sequence[int]) -> tuple[bool, bytes]:
    """Whether the prompt has no text at all, and the bytes of a character that it leaves open (at most three)."""
    end = b""
    has_text = False
    for token_id in reversed(prompt_ids):
        has_text = has_text or table.is_text(token_id)
        end = table[token_id] + end
        if len(end) >= 3:  # a lead byte starts a character whatever came before it, so three bytes tell
            break
    _, unfinished = _characters(end, table.errors)
    return not has_text, unfinished


def _characters(data: bytes, errors: str) -> tuple[str, bytes]:
    """The whole characters of `data`, and the bytes of an unfinished one at its end: one that a next byte can go on."""
    text, used = utf_8_decode(data, errors, False)
    rest = data[used:]
    if b"\xed\xa0" <= rest < b"\xee":  # half a surrogate pair, which Python waits for, but no byte makes it a character
        return text + utf_8_decode(rest, errors, True)[0], b""
    return text, rest
