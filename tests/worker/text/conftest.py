"""Tiny models' text sides, one of each kind of tokenizer, written to disk in Hugging Face format without weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from worker.text import TextModel

SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
BOS, EOS = SPECIAL.index("<s>"), SPECIAL.index("</s>")
CORPUS = [
    "the quick brown fox jumps over the lazy dog, and the dog sleeps on",
    "count from one to twelve: one two three four five six seven",
    "héllo wörld, grüße, 你好世界 你好 🙂👍🏽 🙂🙂",
    "def f(x):\n    return x + 1\n\n### end ###",
] * 20
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_level() -> Tokenizer:
    """As Llama 3 and Qwen have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(["<tool call>", "日本"])  # added, not special: plain text, also outside the byte alphabet
    return tokenizer


def byte_fallback() -> Tokenizer:
    """As Llama 2 and Mistral have it: metaspace by a normalizer, bytes for what the vocabulary lacks."""
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizer
    trained.pre_tokenizer = pre_tokenizers.Split(Regex("▁[^▁]*"), "isolated")
    trained.train_from_iterator(
        [line for line in CORPUS if line.isascii()], trainers.BpeTrainer(vocab_size=120, show_progress=False)
    )
    learned = json.loads(trained.to_str())["model"]
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *learned["vocab"]]
    vocabulary = {token: n for n, token in enumerate(tokens)}
    merges = [tuple(merge) for merge in learned["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def metaspace() -> Tokenizer:
    """SentencePiece's unigram model with the decoder that `tokenizers` has for it."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(
        CORPUS, trainers.UnigramTrainer(vocab_size=150, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    )
    return tokenizer


def word_level() -> Tokenizer:
    """Whole words, and no decoder at all: tokens are joined by spaces."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(CORPUS, trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False))
    return tokenizer


def word_piece() -> Tokenizer:
    """Words and their ##continuations."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    maker.__name__: maker for maker in (byte_level, byte_fallback, metaspace, word_level, word_piece)
}


def write_model(
    directory: Path,
    tokenizer: Tokenizer,
    *,
    template: str | None = CHATML,
    bos: bool = False,
    config: dict[str, object] | None = None,
    generation: dict[str, object] | None = None,
) -> Path:
    """A model directory; `bos`: the tokenizer's post-processor puts <s> before a prompt."""
    directory.mkdir(parents=True, exist_ok=True)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
    }
    if template is not None:
        settings["chat_template"] = template
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    # Padded past the tokenizer's own, as many are.
    config = config or {"model_type": "llama", "vocab_size": tokenizer.get_vocab_size() + 8}
    (directory / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    return directory


@pytest.fixture(scope="session")
def text_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TextModel]:
    """A TextModel of each kind of tokenizer."""
    root = tmp_path_factory.mktemp("text_models")
    return {kind: TextModel.from_pretrained(str(write_model(root / kind, make()))) for kind, make in KINDS.items()}


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """`make_model(kind, name="model", **options of write_model)`: the directory of a new model."""

    def make(kind: str = "byte_level", name: str = "model", **options: Any) -> Path:
        return write_model(tmp_path / name, KINDS[kind](), **options)

    return make
