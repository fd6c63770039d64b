"""The models that benches measure on: random weights in Hugging Face format, made on the spot, once.

`random_llama` has 19M parameters: small enough that a step's fixed costs show, large enough that products take most of
it. `random_qwen` has 474M, of Qwen3-0.6B's shape with a smaller vocabulary: no cache holds it. The weights are livelier
than a default initialisation, so that greedy text does not collapse into one token at once; nothing about their text is
meant. The tokenizer gives every id some letters, so that the worker has text to publish.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from string import ascii_lowercase
from typing import Any

VOCAB = 8192
_SPECIAL = ("<|end|>", "<|bos|>", "<|pad|>")
QWEN_VOCAB = 32768


def random_llama(cache: Path) -> Path:
    """The small model's directory under `cache`, made if it is not there: three seconds."""
    return _made(cache, "random-llama-19m", _llama)  # another recipe is another name


def random_qwen(cache: Path) -> Path:
    """The mid model's, likewise: half a minute, 0.95 GB."""
    return _made(cache, "random-qwen3-474m", _qwen)


def with_length(directory: Path, max_len: int) -> Path:
    """The same weights, whose config.json says that they take max_len tokens: a directory beside theirs."""
    longer = directory.with_name(f"{directory.name}-{max_len}")

    def link(made: Path) -> None:
        made.mkdir()
        for file in directory.iterdir():
            if file.name != "config.json":
                (made / file.name).hardlink_to(file)
        config = json.loads((directory / "config.json").read_text())
        (made / "config.json").write_text(json.dumps({**config, "max_position_embeddings": max_len}))

    return _made(directory.parent, longer.name, link)


def _made(cache: Path, name: str, make: Callable[[Path], None]) -> Path:
    """The directory `name` under `cache`; where it is not there, what `make` put into the path it was given."""
    directory = cache / name
    if not directory.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            made = Path(scratch) / name
            make(made)
            if not directory.exists():  # else another process was faster
                shutil.move(made, directory)
    return directory


def num_parameters(directory: Path) -> int:
    """Elements of all tensors of the checkpoint."""
    from safetensors import safe_open

    with safe_open(directory / "model.safetensors", "pt") as checkpoint:
        return sum(checkpoint.get_tensor(name).numel() for name in checkpoint.keys())  # noqa: SIM118 (no mapping)


def _llama(directory: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=384,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=64,
        intermediate_size=1024,
        vocab_size=VOCAB,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        eos_token_id=0,
        bos_token_id=1,
        pad_token_id=2,
        dtype="bfloat16",
    )
    _make_weights(LlamaForCausalLM, config, directory)
    _make_tokenizer(directory, VOCAB)


def _qwen(directory: Path) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        hidden_size=1024,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=3072,
        vocab_size=QWEN_VOCAB,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        eos_token_id=0,
        bos_token_id=1,
        pad_token_id=2,
        dtype="bfloat16",
    )
    _make_weights(Qwen3ForCausalLM, config, directory)
    _make_tokenizer(directory, QWEN_VOCAB)


def _make_weights(architecture: Callable[[Any], Any], config: object, directory: Path) -> None:
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    model = architecture(config).to(torch.bfloat16)
    with torch.inference_mode():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.normal_(0.0, 0.02 if "embed" in name else weight.shape[1] ** -0.5)
    model.save_pretrained(directory)


def _make_tokenizer(directory: Path, vocab: int) -> None:
    """Byte-level BPE whose merges are no statistics: pairs of letters, then pairs of pairs, until the ids are used."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [(a, b) for a in ascii_lowercase for b in ascii_lowercase]
    left = vocab - len(_SPECIAL) - len(alphabet) - len(pairs)
    merges = [*pairs, *islice(((a + b, c + d) for a, b in pairs for c, d in pairs), left)]
    vocabulary = {token: id_ for id_, token in enumerate([*_SPECIAL, *alphabet, *(a + b for a, b in merges)])}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end, bos, pad = _SPECIAL
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, bos_token=bos, pad_token=pad)
    wrapped.save_pretrained(directory)
