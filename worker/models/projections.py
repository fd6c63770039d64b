"""A decoder's projections: taken from a checkpoint, quantised or not, and kept as they are to be multiplied.

In: tensors by name, how the checkpoint has them (quantisation.py) and how they are to be kept. Out: Linears, those that
share their input as one. What was read is let go once it is packed. Which layouts there are is this file's matter and
kernels/quantised_linear.py's; a decoder does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from kernels.fp8_linear import Fp8Weight
from kernels.linear import Linear
from kernels.narrow_linear import NarrowWeight, Weight, side_by_side
from kernels.quantised_linear import QuantisedWeight
from worker.models.checkpoint import Checkpoint, Weights
from worker.models.errors import ModelError
from worker.models.quantisation import Layout, Quantisation

_AT_ONCE = 1 << 23  # elements rounded at a time: what that takes beside, some 30 bytes an element, stays small
_FP8_NAME = "F8_E4M3"  # safetensors' name of the dtype
_SCALES = {"BF16": torch.bfloat16, "F32": torch.float32}  # others are fp16


class Keep(StrEnum):
    """What projections are in memory."""

    AS_READ = "as read"  # packed ones packed, others in the model's dtype
    PLAIN = "the model's dtype"
    INT8 = "int8"  # a scale for each output
    INT4 = "int4"  # a scale and a zero for each group of 128 inputs, or as many as divide them
    FP8 = "fp8"  # a scale for each output


def int4_group(inputs: int) -> int | None:
    """Inputs that share a scale where weights are rounded to 4 bits; None: these can't be."""
    return next((size for size in (128, 64, 32) if inputs % size == 0), None)


class Projections:
    """Takes weights for a decoder in `dtype`."""

    def __init__(
        self,
        source: Weights,
        dtype: torch.dtype,
        quantisation: Quantisation | None = None,
        keep: Keep = Keep.AS_READ,
        **how: Any,
    ) -> None:
        """quantisation: what the checkpoint's quantised projections are; how: what each Linear is given beside."""
        assert quantisation is None or isinstance(source, Checkpoint), "only a checkpoint holds quantised weights"
        self._source, self._dtype = source, dtype
        self._quantisation, self._keep, self._how = quantisation, keep, how

    def linear(self, names: Mapping[str, int], inputs: int, bias: bool) -> Linear:
        """The projections `names` (with their output sizes) side by side as one product. Raises ModelError."""
        try:
            weight = side_by_side([self._kept(name, (size, inputs)) for name, size in names.items()])
        except ValueError as error:
            raise ModelError(f"{', '.join(names)} can't be one product: {error}") from None
        biases = []
        for name, size in names.items():
            if bias:
                biases.append(self._source.take(f"{name}.bias", (size,), self._dtype))
            else:
                self._drop_zeros(f"{name}.bias", size)
        joined = torch.cat(biases) if bias else None
        return Linear(weight, joined, **self._how)

    def _kept(self, name: str, shape: tuple[int, int]) -> Weight:
        found = self._found(name, shape)
        if self._keep is Keep.AS_READ:
            return found
        plain = found if isinstance(found, Tensor) else _plain(found, self._dtype)
        return plain if self._keep is Keep.PLAIN else rounded(plain, self._keep)

    def _found(self, name: str, shape: tuple[int, int]) -> Weight:
        """As the checkpoint has it: modules it left out of quantisation are in the model's dtype."""
        stored = self._quantisation
        if stored is not None and stored.layout is Layout.FP8:
            return self._fp8(name, shape)
        if stored is None or (f"{name}.qweight" not in self._source and f"{name}.weight" in self._source):
            return self._source.take(f"{name}.weight", shape, self._dtype)
        return self._packed(stored, name, shape)

    def _packed(self, stored: Quantisation, name: str, shape: tuple[int, int]) -> QuantisedWeight:
        """AWQ's or GPTQ's."""
        outputs, inputs = shape
        in_word, group = 32 // stored.bits, stored.group or inputs
        if inputs % group or inputs % in_word or outputs % in_word:
            raise ModelError(
                f"{name} has {inputs} inputs and {outputs} outputs; {stored.words} takes inputs in multiples of "
                f"{group} and outputs in multiples of {in_word}"
            )
        codes = (inputs, outputs // in_word) if stored.layout is Layout.AWQ else (inputs // in_word, outputs)
        qweight = self._source.take(f"{name}.qweight", codes, torch.int32)
        qzeros = self._source.take(f"{name}.qzeros", (inputs // group, outputs // in_word), torch.int32)
        scales = self._scales(f"{name}.scales", (inputs // group, outputs))
        if stored.layout is Layout.AWQ:
            return QuantisedWeight.from_awq(qweight, qzeros, scales)
        g_idx = None
        if f"{name}.g_idx" in self._source:
            g_idx = self._source.take(f"{name}.g_idx", (inputs,), torch.int32)
        try:
            return QuantisedWeight.from_gptq(qweight, qzeros, scales, g_idx, bits=stored.bits, less=stored.less)
        except ValueError as error:
            raise ModelError(f"{name}: {error}; is the checkpoint damaged?") from None

    def _scales(self, name: str, shape: tuple[int, int]) -> Tensor:
        """In their own dtype: as much as bf16 would lose of fp16 is not lost."""
        assert isinstance(self._source, Checkpoint)
        _, dtype = self._source.look(name)
        return self._source.take(name, shape, _SCALES.get(dtype, torch.float16))

    def _fp8(self, name: str, shape: tuple[int, int]) -> Weight:
        """FP8 with a scale for the weight or for each output; input scales are passed over, rows bring their own."""
        checkpoint = self._source
        assert isinstance(checkpoint, Checkpoint)
        _, dtype = checkpoint.look(f"{name}.weight")
        if dtype != _FP8_NAME:
            return checkpoint.take(f"{name}.weight", shape, self._dtype)
        if f"{name}.weight_scale_inv" in checkpoint:
            raise ModelError(f"{name}: fp8 with scales of blocks (weight_scale_inv) is not supported; take another")
        codes = checkpoint.take(f"{name}.weight", shape, torch.float8_e4m3fn)
        scale_shape, _ = checkpoint.look(f"{name}.weight_scale")
        outputs = shape[0]
        one = scale_shape in ((), (1,))
        scales = checkpoint.take(f"{name}.weight_scale", scale_shape if one else (outputs, 1), torch.float32)
        if f"{name}.input_scale" in checkpoint:
            checkpoint.take(f"{name}.input_scale", checkpoint.look(f"{name}.input_scale")[0], torch.float32)
        weight = Fp8Weight(codes, scales.reshape(-1).expand(outputs).contiguous())
        return weight.as_fnuz() if torch.version.hip is not None and codes.is_cuda else weight

    def _drop_zeros(self, name: str, size: int) -> None:
        """Take a bias that config.json has none of, which some writers of GPTQ add, if it is zeros."""
        if self._quantisation is None or name not in self._source:
            return
        if self._source.take(name, (size,), self._dtype).any():
            raise ModelError(f"{name} is in the weights, but config.json asks for none: they belong to another config")


def rounded(plain: Tensor, keep: Keep) -> NarrowWeight:
    """plain [N, K] to the nearest codes. Raises ValueError if the inputs don't fit."""
    at_once = max(16, _AT_ONCE // plain.shape[1])
    parts = torch.split(plain, at_once)
    if keep is Keep.FP8:
        amd = torch.version.hip is not None and plain.is_cuda
        dtype = torch.float8_e4m3fnuz if amd else torch.float8_e4m3fn
        return Fp8Weight.beside([Fp8Weight.of(part, dtype) for part in parts])
    bits, group = (8, None) if keep is Keep.INT8 else (4, int4_group(plain.shape[1]))
    if bits == 4 and group is None:
        raise ValueError(f"4 bits take inputs in multiples of 32, got {plain.shape[1]}")
    return QuantisedWeight.beside([QuantisedWeight.of(part, bits, group) for part in parts])


def _plain(weight: NarrowWeight, dtype: torch.dtype) -> Tensor:
    """[N, K] contiguous."""
    if isinstance(weight, Fp8Weight):
        return weight.whole(dtype)
    return weight.whole(dtype).t().contiguous()
