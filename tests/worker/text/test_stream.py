"""One job's tokens on their way out: the cases that have names."""

from __future__ import annotations

import pytest

from worker.text import BadPrompt, Piece, TextModel, TextStream

CHARACTER_IN_FOUR = "\U00040000"  # far from any text: each tokenizer with bytes has it as four tokens of one
EOS = 2


@pytest.fixture
def byte_level(text_models) -> TextModel:
    """As Llama 3 and Qwen have it."""
    return text_models["byte_level"]


@pytest.fixture
def byte_fallback(text_models) -> TextModel:
    """As Llama 2 and Mistral have it."""
    return text_models["byte_fallback"]


def ids(model: TextModel, text: str) -> list[int]:
    return model.encode_prompt(text)


def each(stream: TextStream, token_ids: list[int]) -> list[str]:
    """The text that each token lets out when they come one by one."""
    return [stream.push([token_id]).text for token_id in token_ids]


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_a_character_goes_out_whole_with_its_last_token(text_models, kind):
    """A character of four one-byte tokens waits for the fourth, and its tokens wait with it."""
    model = text_models[kind]
    token_ids = ids(model, "the " + CHARACTER_IN_FOUR)[-4:]
    stream = model.stream(ids(model, "the "))
    assert each(stream, token_ids[:3]) == ["", "", ""]
    assert stream.offset == 0
    assert stream.push(token_ids[3:]) == Piece(token_ids, ["", "", "", CHARACTER_IN_FOUR])


def test_an_unfinished_character_at_the_end_is_one_replacement_character_in_byte_level_text(byte_level):
    """As `tokenizers` decodes it: three of four bytes are one U+FFFD."""
    token_ids = ids(byte_level, CHARACTER_IN_FOUR)[:3]
    stream = byte_level.stream(ids(byte_level, "the"))
    stream.push(token_ids)
    assert stream.finish() == Piece(token_ids, ["", "", "\ufffd"])


def test_an_unfinished_character_at_the_end_is_a_replacement_character_a_byte_in_byte_fallback_text(byte_fallback):
    """As SentencePiece and `tokenizers` decode it: three of four bytes are three U+FFFD."""
    token_ids = ids(byte_fallback, CHARACTER_IN_FOUR)[-4:-1]
    stream = byte_fallback.stream(ids(byte_fallback, "the"))
    stream.push(token_ids)
    assert stream.finish() == Piece(token_ids, ["", "", "\ufffd\ufffd\ufffd"])


def test_bytes_that_can_never_be_a_character_are_not_waited_for(byte_level):
    """A byte that no character begins with goes out at once, as U+FFFD."""
    stray = ids(byte_level, CHARACTER_IN_FOUR)[-1]
    assert byte_level.stream(ids(byte_level, "the")).push([stray]) == Piece([stray], ["\ufffd"])


def test_half_a_surrogate_pair_is_not_waited_for(byte_level):
    """0xED 0xA1 begins what UTF-8 excludes, so no third byte would make it a character: two U+FFFD at once."""
    token_ids = [byte_level._backend.token_to_id(char) for char in "í¡"]  # those two bytes in GPT-2's alphabet
    stream = byte_level.stream(ids(byte_level, "the"))
    assert each(stream, token_ids) == ["", "\ufffd\ufffd"]


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_the_output_completes_a_character_that_the_prompt_leaves_open(text_models, kind):
    """A prompt given as ids may end within a character; the character is then the output's."""
    model = text_models[kind]
    *prompt, last = ids(model, "the " + CHARACTER_IN_FOUR)
    stream = model.stream(prompt)
    assert stream.push([EOS]) == Piece([EOS], [""]), "no byte yet, so nothing to wait for"
    assert stream.push([last]) == Piece([last], [CHARACTER_IN_FOUR])


def test_what_the_prompt_leaves_open_is_no_output_by_itself(byte_level):
    """An output without text stays without text, though the prompt ended within a character."""
    stream = byte_level.stream(ids(byte_level, CHARACTER_IN_FOUR)[:3], stop=["\ufffd"])
    assert stream.push([EOS]) == Piece([EOS], [""])
    assert stream.finish() == Piece([], [])
    assert not stream.stopped


def test_the_first_token_keeps_its_space_behind_a_prompt(byte_fallback):
    """`▁fox` behind "the" is " fox": prompt and output join to what was meant."""
    stream = byte_fallback.stream(ids(byte_fallback, "the"))
    assert each(stream, ids(byte_fallback, "fox dog")) == [" fox", " dog"]


@pytest.mark.parametrize("prompt", [[], [1]])
def test_an_output_that_opens_the_text_begins_without_a_space(byte_fallback, prompt):
    """Behind no text, not even a special token's, `▁fox` is "fox" as the whole decode has it."""
    stream = byte_fallback.stream(prompt)
    assert each(stream, [EOS, *ids(byte_fallback, "fox dog")]) == ["", "fox", " dog"]


def test_an_output_may_open_the_text_with_a_byte(byte_fallback):
    """A character in bytes at the very start is as whole as anywhere."""
    token_ids = ids(byte_fallback, CHARACTER_IN_FOUR)[-4:]
    assert each(byte_fallback.stream([]), token_ids) == ["", "", "", CHARACTER_IN_FOUR]


def test_special_tokens_and_unknown_ids_go_out_without_text(byte_level):
    """The end-of-sequence id, a padded vocabulary's, one past every vocabulary and a negative one have no text."""
    strange = [EOS, byte_level.vocab_size - 1, 2**40, -1]
    assert byte_level.stream(ids(byte_level, "the")).push(strange) == Piece(strange, [""] * 4)


def test_a_stop_string_is_never_seen_in_part(byte_level):
    """While one may be forming its tokens wait; if it does not come about they go out with what followed."""
    stream = byte_level.stream(ids(byte_level, "the"), stop=["###end"])
    assert each(stream, ids(byte_level, " dog###"))[-1] == ""
    assert stream.push(ids(byte_level, " fox")).text.endswith("### fox")


def test_a_stop_string_ends_the_output_before_it(byte_level):
    """Ids run to the token that completed it, text to the character before it, and nothing comes after."""
    token_ids = ids(byte_level, " dog sleeps on")
    stream = byte_level.stream(ids(byte_level, "the"), stop=["eeps"])
    piece = stream.push(token_ids)
    assert piece.text == " dog sl"
    assert stream.stopped
    assert stream.offset == len(piece.token_ids)
    assert "eeps" in byte_level._backend.decode(piece.token_ids)
    assert "eeps" not in byte_level._backend.decode(piece.token_ids[:-1])
    assert stream.push(token_ids) == stream.finish() == Piece([], [])


def test_of_stop_strings_that_end_together_the_longest_counts(byte_level):
    """So that less of what was not wanted goes out."""
    stream = byte_level.stream(ids(byte_level, "the"), stop=["s on", "sleeps on"])
    assert stream.push(ids(byte_level, " dog sleeps on")).text == " dog "


def test_the_end_lets_out_what_a_stop_string_never_completed(byte_level):
    """The tail is not lost with the stop string that did not come."""
    stream = byte_level.stream(ids(byte_level, "the"), stop=[" dog sleeps on and on"])
    token_ids = ids(byte_level, " dog sleeps on")
    assert stream.push(token_ids) == Piece([], [])
    assert stream.finish() == Piece(token_ids, [byte_level._backend.decode([token_id]) for token_id in token_ids])
    assert not stream.stopped


def test_stop_strings_before_min_tokens_are_text(byte_level):
    """A stop string that the third token completes counts with min_tokens=3, not with 4."""
    token_ids = ids(byte_level, " fox dog fox dog fox dog")
    third = byte_level._backend.decode(token_ids[2:3])
    early = byte_level.stream(ids(byte_level, "the"), [third], min_tokens=3)
    late = byte_level.stream(ids(byte_level, "the"), [third], min_tokens=4)
    assert len(early.push(token_ids).token_ids) == 3
    assert len(late.push(token_ids).token_ids) == 5


def test_a_replay_may_find_the_output_complete(byte_level):
    """Where published tokens complete a stop string, the stream is stopped and gives nothing more."""
    token_ids = ids(byte_level, " dog sleeps on")
    stream = byte_level.stream(ids(byte_level, "the"), stop=["sleeps"])
    stream.replay(stream_ids := byte_level.stream(ids(byte_level, "the"), stop=["sleeps"]).push(token_ids).token_ids)
    assert stream.stopped
    assert stream.offset == len(stream_ids)
    assert stream.push(token_ids) == stream.finish() == Piece([], [])


def test_a_stop_string_that_begins_in_what_is_published_takes_nothing_back(byte_level):
    """Another owner may go on otherwise than the first would have; the stop still ends the output, right there."""
    stream = byte_level.stream(ids(byte_level, "the"), stop=["# fox"])
    stream.replay(ids(byte_level, "###"))
    assert stream.push(ids(byte_level, " fox")) == Piece(ids(byte_level, " fox"), [""])
    assert stream.stopped


def test_an_empty_stop_string_is_refused(byte_level):
    """It would end every output before its first character."""
    with pytest.raises(BadPrompt, match="stop string is empty") as refused:
        byte_level.stream([], stop=["end", ""])
    assert refused.value.field == "stop"
