"""One token's bytes in the text, for every kind of tokenizer."""

import pytest
from tokenizers import Tokenizer, decoders, models

from worker.text import ModelFilesInvalid
from worker.text.token_bytes import TokenBytes


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback", "metaspace", "word_level", "word_piece"])
def test_every_token_behind_another_adds_its_bytes(text_models, kind):
    """What a token adds behind a plain one in the tokenizer's own decode is its bytes, shown by the table's errors."""
    backend = text_models[kind]._backend
    table = TokenBytes(backend)
    plain = backend.encode("the").ids[-1]
    before = backend.decode([plain])
    for token_id in range(backend.get_vocab_size() + 3):
        added = backend.decode([plain, token_id], skip_special_tokens=True).removeprefix(before)
        assert table[token_id].decode(errors=table.errors) == added


def test_a_decoder_that_looks_at_neighbours_is_refused():
    """A tokenizer whose tokens' text depends on the token after them can't be streamed, and the error says so."""
    tokenizer = Tokenizer(models.WordLevel({"a</w>": 0, "b</w>": 1, "c</w>": 2}, unk_token="a</w>"))
    tokenizer.decoder = decoders.BPEDecoder()
    with pytest.raises(ModelFilesInvalid, match=r"one token at a time.*BPEDecoder"):
        TokenBytes(tokenizer)
