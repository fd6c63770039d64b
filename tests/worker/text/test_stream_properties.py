"""What holds of every stream: random tokens, every kind of tokenizer, however the tokens are cut into pushes.

The truth is the tokenizer's own decode of all ids at once. Only runs of byte-fallback tokens are decoded here, by
SentencePiece's rule: `tokenizers` turns good characters into U+FFFD because of a bad byte that comes later.
"""

from __future__ import annotations

from itertools import groupby
from os.path import commonprefix

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.text import Piece, TextModel, TextStream

# Words and characters that the tokenizers know whole, in bytes or not at all; and ids at random, unknown ones too.
WORDS = ["the", " fox", " 你好", "🙂", "👍🏽", " héllo", "\n\n###", " <tool call>日本", "</s>", "naïve ☂", "▁ a"]
CHUNKS = st.lists(st.one_of(st.sampled_from(WORDS), st.lists(st.integers(0, 499), min_size=1, max_size=6)), max_size=6)
PROMPTS = st.sampled_from(["", "</s>", "the dog ", "count 你"])
CUTS = st.lists(st.integers(1, 4), min_size=60, max_size=60)
# A stop string is cut out of the text at (start, length), and may go on otherwise than the text does.
STOPS = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 6), st.sampled_from(["", "", "x", "\n"])), max_size=4)

BYTES_FOLLOW = ("byte_level", "byte_fallback")
every_kind = pytest.mark.parametrize("kind", [*BYTES_FOLLOW, "metaspace", "word_level", "word_piece"])
each_example = settings(max_examples=30, deadline=None)


class Truth:
    """The text of an output, from decoding it whole behind its prompt."""

    def __init__(self, model: TextModel, kind: str, prompt: str, chunks: list[str | list[int]]) -> None:
        self.backend = model._backend
        self.kind = kind
        self.prompt = self._encode(prompt)
        self.ids = [i for chunk in chunks for i in (self._encode(chunk) if isinstance(chunk, str) else chunk)]
        self.continuations: list[list[int]] = []
        if kind in BYTES_FOLLOW:  # one of these continues whatever part of a character there is
            xa0, x80 = self._encode("\u0800")[-2:]
            x90 = self._encode("\U00010000")[-3]
            self.continuations = [[first] + [x80] * more for first in (x80, x90, xa0) for more in range(3)]
        self.whole = self.text(len(self.ids))
        self.settled = [self._settled(length) for length in range(len(self.ids) + 1)]

    def text(self, length: int) -> str:
        """What the first `length` ids add to the prompt's text; an unfinished character at the end is U+FFFD."""
        return self._text(self.ids[:length])

    def stops(self, drawn: list[tuple[int, int, str]]) -> list[str]:
        stops = [self.whole[start : start + length] + more for start, length, more in drawn]
        return [stop for stop in stops if stop]

    def end(self, stops: list[str], min_tokens: int = 0) -> tuple[int, int, bool]:
        """(ids, characters, by a stop string?) of the whole output; the stop that ends first, then the longest."""
        matches = {
            (start + len(stop), start)
            for stop in stops
            for start in range(len(self.whole))
            if self.whole.startswith(stop, start)
        }
        for end, start in sorted(matches):
            by = next((n for n, text in enumerate(self.settled) if len(text) >= end), len(self.ids))
            if by >= min_tokens:
                return by, start, True
        return len(self.ids), len(self.whole), False

    def releasable(self, length: int, stops: list[str]) -> int:
        """How many of the first `length` ids no continuation can take back."""
        settled = self.settled[length]
        prefixes = {stop[:n] for stop in stops for n in range(len(stop))} | {""}
        limit = len(settled) - max(len(prefix) for prefix in prefixes if settled.endswith(prefix))
        clean = [n for n in range(length + 1) if self.text(n) == self.settled[n] and len(self.settled[n]) <= limit]
        return max(clean)

    def _settled(self, length: int) -> str:
        """What of `text(length)` no further ids can change."""
        more = [self._text(self.ids[:length] + continuation) for continuation in self.continuations]
        return commonprefix([self.text(length), *more])  # noqa: RUF071 - character by character is meant

    def _text(self, ids: list[int]) -> str:
        return self._decode(self.prompt + ids)[len(self._decode(self.prompt)) :]

    def _encode(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids

    def _decode(self, ids: list[int]) -> str:
        if self.kind != "byte_fallback":
            return self.backend.decode(ids, skip_special_tokens=True)
        tokens = [self.backend.id_to_token(i) for i in ids]
        tokens = [token for token in tokens if token is not None and token not in SPECIAL]
        parts: list[str] = []
        for is_byte, run in groupby(tokens, key=lambda token: token.startswith("<0x")):
            run_tokens = list(run)
            parts += [by_sentencepiece(bytes(int(t[3:5], 16) for t in run_tokens))] if is_byte else run_tokens
        return self.backend.decoder.decode(parts).replace(SPELLED, "▁")


SPECIAL = {"<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"}
SPELLED = "\ue000"  # stands for a ▁ spelled in bytes, which is no space


def by_sentencepiece(data: bytes) -> str:
    """Characters where bytes form them, else U+FFFD for one byte."""
    text = ""
    while data:
        length, char = next(((n, c) for n in range(1, 5) if (c := character(data[:n]))), (1, "\ufffd"))
        text, data = text + char, data[length:]
    return text.replace("▁", SPELLED)


def character(data: bytes) -> str | None:
    """The character that `data` is, if it is one."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def published(stream: TextStream, ids: list[int], cuts: list[int]) -> list[Piece]:
    """All pieces of `ids` pushed in parts of the lengths `cuts`, and of the end."""
    pieces, rest = [], ids
    for length in cuts:
        pieces.append(stream.push(rest[:length]))
        rest = rest[length:]
    return [*pieces, stream.push(rest), stream.finish()]


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def ids_of(pieces: list[Piece]) -> list[int]:
    return [token_id for piece in pieces for token_id in piece.token_ids]


@every_kind
@each_example
@given(prompt=PROMPTS, chunks=CHUNKS, cuts=CUTS)
def test_the_pieces_together_are_the_whole_output(text_models, kind, prompt, chunks, cuts):
    """Without stop strings all ids come out, and their text is what decoding them at once adds to the prompt's."""
    truth = Truth(text_models[kind], kind, prompt, chunks)
    pieces = published(text_models[kind].stream(truth.prompt), truth.ids, cuts)
    assert ids_of(pieces) == truth.ids
    assert text_of(pieces) == truth.whole


@every_kind
@each_example
@given(prompt=PROMPTS, chunks=CHUNKS, cuts=CUTS)
def test_a_token_carries_the_text_that_its_coming_settled(text_models, kind, prompt, chunks, cuts):
    """Cut behind any token, the texts so far are what no later token can change: a character is its last token's."""
    truth = Truth(text_models[kind], kind, prompt, chunks)
    pieces = published(text_models[kind].stream(truth.prompt), truth.ids, cuts)
    texts = [text for piece in pieces for text in piece.texts]
    assert len(texts) == len(truth.ids)
    for length in range(len(texts)):
        assert "".join(texts[:length]) == truth.settled[length]


@every_kind
@each_example
@given(prompt=PROMPTS, chunks=CHUNKS, cuts=CUTS, drawn=STOPS)
def test_what_is_out_is_at_any_time_the_text_of_its_ids(text_models, kind, prompt, chunks, cuts, drawn):
    """After each push before the end the text so far equals decoding the ids so far, in the order they came in."""
    truth = Truth(text_models[kind], kind, prompt, chunks)
    stream = text_models[kind].stream(truth.prompt, truth.stops(drawn))
    pieces, pushed = [], 0
    for length in cuts:
        pieces.append(stream.push(truth.ids[pushed : pushed + length]))
        pushed += length
        if stream.stopped:
            break
        assert ids_of(pieces) == truth.ids[: stream.offset]
        assert text_of(pieces) == truth.text(stream.offset)


@every_kind
@each_example
@given(prompt=PROMPTS, chunks=CHUNKS, cuts=CUTS, drawn=STOPS)
def test_only_what_could_still_change_is_held_back(text_models, kind, prompt, chunks, cuts, drawn):
    """After each push all is out but the tokens that reach into a forming stop string or an unfinished character."""
    truth = Truth(text_models[kind], kind, prompt, chunks)
    stops = truth.stops(drawn)
    stream = text_models[kind].stream(truth.prompt, stops)
    pushed = 0
    for length in cuts:
        stream.push(truth.ids[pushed : pushed + length])
        pushed = min(pushed + length, len(truth.ids))
        if stream.stopped:
            break
        assert stream.offset == truth.releasable(pushed, stops)


@every_kind
@each_example
@given(prompt=PROMPTS, chunks=CHUNKS, cuts=CUTS, drawn=STOPS, min_tokens=st.integers(0, 12))
def test_the_first_stop_string_to_complete_ends_the_output(text_models, kind, prompt, chunks, cuts, drawn, min_tokens):
    """Ids run to the token that completed it, not before the min_tokens-th; text runs to the character before it."""
    truth = Truth(text_models[kind], kind, prompt, chunks)
    stops = truth.stops(drawn)
    stream = text_models[kind].stream(truth.prompt, stops, min_tokens)
    pieces = published(stream, truth.ids, cuts)
    ids, characters, stopped = truth.end(stops, min_tokens)
    assert ids_of(pieces) == truth.ids[:ids]
    assert text_of(pieces) == truth.whole[:characters]
    assert stream.stopped == stopped


@every_kind
@each_example
@given(prompt=PROMPTS, chunks=CHUNKS, cuts=CUTS, drawn=STOPS, min_tokens=st.integers(0, 12))
def test_a_new_owner_goes_on_from_any_offset_as_the_old_one(text_models, kind, prompt, chunks, cuts, drawn, min_tokens):
    """Replaying what was out after any push, then pushing the rest, gives the ids and text that were still to come."""
    truth = Truth(text_models[kind], kind, prompt, chunks)
    stops = truth.stops(drawn)
    pieces = published(text_models[kind].stream(truth.prompt, stops, min_tokens), truth.ids, cuts)
    ids, characters, stopped = truth.end(stops, min_tokens)
    for done in range(len(pieces)):
        out = ids_of(pieces[:done])
        stream = text_models[kind].stream(truth.prompt, stops, min_tokens)
        stream.replay(out)
        assert stream.offset == len(out)
        rest = [*(stream.push([token_id]) for token_id in truth.ids[len(out) :]), stream.finish()]
        assert out + ids_of(rest) == truth.ids[:ids]
        assert text_of(pieces[:done] + rest) == truth.whole[:characters]
        assert stream.stopped == stopped
