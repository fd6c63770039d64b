"""How examples become training rows: the formats a prompt may come in, as token ids with a weight on each answer token.

A chat comes as the template writes it, now and then with a system message or an earlier turn; a plain prompt is the
text, a line break, the answer. The line break counts as answered too, so a plain prompt that does not end in one is
continued with it. The answer ends with the end token, which is the model's end of sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from transformers import PreTrainedTokenizerFast

from ops.demo.tasks import Split, sample, sample_any
from ops.demo.vocabulary import ASSISTANT, BOS, END, SYSTEM, USER

_SYSTEMS = (
    "You are a helpful assistant.",
    "You answer with the answer alone.",
    "Be brief.",
    "You are Slipstream, a small model that counts, sorts and spells.",
)
_SHORT_KINDS = ("add", "compare", "sort", "say", "reverse", "spell", "weekdays", "alphabet")


@dataclass(frozen=True)
class Segment:
    """A stretch of a row's text, and whether the model is to learn to say it."""

    text: str
    said: bool


@dataclass(frozen=True)
class Encoded:
    """A row's token ids and, for each, its weight in the loss: 0 where it was given."""

    ids: list[int]
    shares: list[float]


def draw_conversation(rng: Random) -> list[Segment]:
    """Draw a training example in one of its formats; the segments make up the row from its first token to its last."""
    example = sample_any(rng, Split.TRAIN)
    if rng.random() < 0.4:
        return [Segment(BOS + example.prompt, said=False), Segment(f"\n{example.answer}{END}", said=True)]
    segments = [Segment(BOS, said=False)]
    if rng.random() < 0.12:
        segments.append(Segment(f"{SYSTEM}{rng.choice(_SYSTEMS)}{END}", said=False))
    turns = [example]
    if rng.random() < 0.1:
        turns.insert(0, sample(rng, rng.choice(_SHORT_KINDS), Split.TRAIN))
    for turn in turns:
        segments.append(Segment(f"{USER}{turn.prompt}{END}{ASSISTANT}", said=False))
        segments.append(Segment(f"{turn.answer}{END}", said=True))
    return segments


def encode(tokenizer: PreTrainedTokenizerFast, conversations: list[list[Segment]]) -> list[Encoded]:
    """Encode conversations, each said segment of n tokens weighing n**0.5: long counts don't drown short answers."""
    texts = [segment.text for segments in conversations for segment in segments]
    encoded = iter(tokenizer(texts, add_special_tokens=False).input_ids)
    rows = []
    for segments in conversations:
        ids: list[int] = []
        shares: list[float] = []
        for segment in segments:
            piece = next(encoded)
            ids += piece
            shares += [len(piece) ** -0.5 if segment.said else 0.0] * len(piece)
        rows.append(Encoded(ids, shares))
    return rows
