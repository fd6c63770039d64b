"""What projections are kept as, by the setting `weights`, the checkpoint and the place: and what they take there.

In: EngineConfig, ModelConfig, whether narrow weights can be multiplied as they are. Out: a Keep, bytes, or ConfigError
in one line. Nothing is loaded here. The embedding, the head and the norms stay in the model's dtype whatever is set.
"""

from __future__ import annotations

import torch

from worker.engine.config import ConfigError, EngineConfig
from worker.models.config import ModelConfig
from worker.models.projections import Keep, int4_group
from worker.models.quantisation import Layout, Quantisation

_SCRATCH = 12  # bytes an element of the largest projection while it is packed: what was read, and codes as int32
_GB = 1e9


def keep_of(config: EngineConfig, model: ModelConfig, *, narrow: bool) -> Keep:
    """What to keep projections as. narrow: the table's products take weights of fewer bits, as a GPU's do; without
    them int8 is Linear's matter (resolve.stored_weights), and what is packed is written out.

    Raises ConfigError for what can't be had here.
    """
    asked, stored = config.weights, model.quantisation
    if asked in ("int4", "fp8") and not narrow:
        raise ConfigError(f"weights {asked} is for GPUs; on this CPU give --weights int8 or auto")
    if asked == "auto" or not narrow:
        return Keep.AS_READ if narrow or stored is None else Keep.PLAIN
    if stored is not None:
        raise ConfigError(f"weights {asked}: the checkpoint's are {stored.words} already; give --weights auto")
    keep = Keep(asked)
    refuse_odd_sizes(model, keep)
    return keep


def refuse_odd_sizes(model: ModelConfig, keep: Keep) -> None:
    """Raise ConfigError if a projection's sizes don't suit what it is kept as."""
    for name, (outputs, inputs) in model.projections.items():
        if keep is Keep.INT4 and int4_group(inputs) is None:
            raise ConfigError(f"weights int4 takes inputs in multiples of 32; {name} has {inputs}: give --weights int8")
        if keep is Keep.INT8 and inputs % 8:
            raise ConfigError(f"weights int8 takes inputs in multiples of 8; {name} has {inputs}: give --weights auto")
        if is_fp8(keep, model.quantisation) and (outputs % 16 or inputs % 16):
            raise ConfigError(
                f"weights fp8 takes inputs and outputs in multiples of 16; {name} has {inputs} and {outputs}: "
                f"give --weights auto"
            )


def is_fp8(keep: Keep, stored: Quantisation | None) -> bool:
    """Whether products are FP8's."""
    return keep is Keep.FP8 or (keep is Keep.AS_READ and stored is not None and stored.layout is Layout.FP8)


def weight_bytes_of(model: ModelConfig, keep: Keep, dtype: torch.dtype) -> int:
    """What all weights take in memory, counted: modules that a checkpoint leaves out of its quantisation aside."""
    layer = sum(_projection_bytes(shape, model.quantisation, keep, dtype) for shape in model.projections.values())
    tables = (1 if model.tied_embeddings else 2) * model.vocab_size * model.hidden_size
    norms = (2 * model.num_layers + 1) * model.hidden_size
    return model.num_layers * layer + (tables + norms) * dtype.itemsize


def loading_bytes_of(model: ModelConfig, keep: Keep) -> int:
    """What packing takes beside, at its most; nothing where weights are kept as they are read."""
    if keep is Keep.PLAIN or (keep is Keep.AS_READ and model.quantisation is None):
        return 0
    return _SCRATCH * max(outputs * inputs for outputs, inputs in model.projections.values())


def words_of(model: ModelConfig, keep: Keep, dtype: torch.dtype, stored_as: str) -> str:
    """What projections are, for a log line: auto where nothing is to be said. stored_as: auto or int8, by Linear."""
    name = str(dtype).removeprefix("torch.")
    stored = model.quantisation
    if keep not in (Keep.AS_READ, Keep.PLAIN):
        return str(keep)
    if stored is None:
        return stored_as
    if keep is Keep.AS_READ:
        return stored.words
    if stored_as != "auto":
        return f"{stored_as}, from {stored.words}"
    taken = weight_bytes_of(model, keep, dtype) / _GB
    packed = weight_bytes_of(model, Keep.AS_READ, dtype) / _GB
    return f"{name}, from {stored.words}: {taken:.2f} GB; a GPU keeps them packed, in {packed:.2f} GB"


def _projection_bytes(shape: tuple[int, int], stored: Quantisation | None, keep: Keep, dtype: torch.dtype) -> int:
    outputs, inputs = shape
    codes = outputs * inputs
    if is_fp8(keep, stored):
        return codes + 4 * outputs
    if keep is Keep.INT8:
        return codes + dtype.itemsize * outputs
    if keep is Keep.INT4:
        groups = inputs // (int4_group(inputs) or inputs)
        return codes // 2 + 2 * dtype.itemsize * groups * outputs
    if keep is Keep.AS_READ and stored is not None:
        groups = inputs // (stored.group or inputs)
        return codes * stored.bits // 8 + 2 * 2 * groups * outputs  # scales and zeros of fp16
    return codes * dtype.itemsize
