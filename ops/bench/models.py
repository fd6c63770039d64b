"""The model that benches measure on: a random Llama of 19M parameters in Hugging Face format, made on the spot, once.

Small enough that a step's fixed costs show, large enough that products take most of it. Its weights are livelier than
a default initialisation, so that greedy text does not collapse into one token at once; nothing about its text is
meant. The tokenizer gives every id some letters, so that the worker has text to publish.
"""

from __future__ import annotations

import shutil
import tempfile
from itertools import islice
from pathlib import Path
from string import ascii_lowercase

VOCAB = 8192
_SPECIAL = ("<|end|>", "<|bos|>", "<|pad|>")
_NAME = "random-llama-19m"  # another recipe is another name


def random_llama(cache: Path) -> Path:
    """The model's directory under `cache`, made if it is not there: three seconds."""
    directory = cache / _NAME
    if not directory.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            made = Path(scratch) / _NAME
            _make_weights(made)
            _make_tokenizer(made)
            if not directory.exists():  # else another process was faster
                shutil.move(made, directory)
    return directory


def num_parameters(directory: Path) -> int:
    """Elements of all tensors of the checkpoint."""
    from safetensors import safe_open

    with safe_open(directory / "model.safetensors", "pt") as checkpoint:
        return sum(checkpoint.get_tensor(name).numel() for name in checkpoint.keys())  # noqa: SIM118 (no mapping)


def _make_weights(directory: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
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
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    with torch.inference_mode():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.normal_(0.0, 0.02 if "embed" in name else weight.shape[1] ** -0.5)
    model.save_pretrained(directory)


def _make_tokenizer(directory: Path) -> None:
    """Byte-level BPE whose merges are no statistics: pairs of letters, then pairs of pairs, until the ids are used."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [(a, b) for a in ascii_lowercase for b in ascii_lowercase]
    left = VOCAB - len(_SPECIAL) - len(alphabet) - len(pairs)
    merges = [*pairs, *islice(((a + b, c + d) for a, b in pairs for c, d in pairs), left)]
    vocabulary = {token: id_ for id_, token in enumerate([*_SPECIAL, *alphabet, *(a + b for a, b in merges)])}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end, bos, pad = _SPECIAL
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, bos_token=bos, pad_token=pad)
    wrapped.save_pretrained(directory)
