"""The whole forward pass in C (forward.c): one call a step instead of some hundred.

At one row of a model of 19M parameters the calls of single operations from Python took longer than all they computed.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from kernels.cpu.pages import expect_pages
from kernels.cpu.product import product_library
from kernels.cpu.product_int8 import Int8Weight
from kernels.linear import Linear
from kernels.prepare_batch import FlatBatch
from kernels.whole_pass import DecoderWeights, LayerWeights, WholePass

_pointer, _integer, _real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class _Matrix(ctypes.Structure):
    _fields_ = [*((name, _pointer) for name in ("packed", "scales", "bias")), ("N", _integer), ("K", _integer)]


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, _Matrix) for name in ("qkv", "o", "gate_up", "down")),
        *((name, _pointer) for name in ("input_norm", "post_norm", "q_norm", "k_norm")),
        ("window", _integer),
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        ("layers", ctypes.POINTER(_Layer)),
        ("head", _Matrix),
        *((name, _pointer) for name in ("embedding", "norm", "cos_sin")),
        *((name, _integer) for name in ("num_layers", "hidden", "inner", "heads", "kv_heads", "D")),
        ("eps", _real),
        ("scale", _real),
    ]


class _Batch(ctypes.Structure):
    _fields_ = [
        *((name, _pointer) for name in ("input_ids", "positions", "slots", "query_start", "seq_lens")),
        *((name, _pointer) for name in ("page_table", "logits_index")),
        *((name, _integer) for name in ("T", "R", "P", "L")),
    ]


class _Pages(ctypes.Structure):
    _fields_ = [("kv", _pointer), ("scales", _pointer), ("layer", _integer), ("page_size", _integer)]


def whole_pass_in_c(weights: DecoderWeights) -> WholePass | None:
    """See WholePassOf. There is one where products are done in C, which is bf16 on some CPUs (product.py)."""
    linears = [linear for w in weights.layers for linear in (w.qkv, w.o, w.gate_up, w.down)]
    if product_library() is None or weights.embedding.dtype != torch.bfloat16:
        return None
    if any(linear.in_c is None for linear in (*linears, weights.head)):
        return None
    return _WholePass(weights)


class _WholePass:
    """The weights as C sees them, and scratch memory that grows to the longest step."""

    def __init__(self, weights: DecoderWeights) -> None:
        library = product_library()
        assert library is not None
        library.forward.argtypes = [_pointer] * 5
        library.forward.restype = ctypes.c_int
        library.forward_scratch.argtypes, library.forward_scratch.restype = [_pointer, _integer], _integer
        self._forward, self._scratch_of = library.forward, library.forward_scratch
        self._weights = weights  # what the pointers point to lives as long as they do
        self._layers = (_Layer * len(weights.layers))(*map(_layer, weights.layers))
        D = weights.cos_sin.shape[1]
        self._model = _Model(
            self._layers,
            _matrix(weights.head),
            *map(_at, (weights.embedding, weights.norm, weights.cos_sin)),
            len(weights.layers),
            weights.embedding.shape[1],
            weights.layers[0].down.in_features,
            weights.heads,
            weights.kv_heads,
            D,
            weights.eps,
            weights.scale,
        )
        self._page = (weights.kv_heads, D)
        self._scratch = torch.empty(0, dtype=torch.bfloat16)

    def __call__(self, batch: FlatBatch, kv: Tensor, kv_scales: Tensor | None = None) -> Tensor:
        """See WholePass."""
        layers, _, sides, kv_heads, page_size, D = kv.shape
        expect_pages(kv, kv_scales, torch.bfloat16)
        assert (layers, sides, kv_heads, D) == (len(self._layers), 2, *self._page), f"pages of shape {tuple(kv.shape)}"
        page_table = batch.page_table.contiguous()
        T, L = len(batch.input_ids), len(batch.logits_index)
        numbers = (batch.input_ids, batch.positions, batch.slot_mapping, batch.query_start, batch.seq_lens, page_table)
        flat = _Batch(*map(_at, (*numbers, batch.logits_index)), T, len(batch.seq_lens), page_table.shape[1], L)
        pages = _Pages(kv.data_ptr(), None if kv_scales is None else _at(kv_scales), kv.stride(0) // D, page_size)
        logits = torch.empty(L, self._model.head.N, dtype=torch.bfloat16)
        needed = self._scratch_of(ctypes.byref(self._model), max(T, L))
        if needed > len(self._scratch):
            self._scratch = torch.empty(needed, dtype=torch.bfloat16)
        failed = self._forward(
            ctypes.byref(self._model),
            ctypes.byref(flat),
            ctypes.byref(pages),
            self._scratch.data_ptr(),
            logits.data_ptr(),
        )
        if failed:
            raise MemoryError("forward: no memory for its work list")
        return logits


def _layer(weights: LayerWeights) -> _Layer:
    matrices = map(_matrix, (weights.qkv, weights.o, weights.gate_up, weights.down))
    norms = (weights.input_norm, weights.post_norm, weights.q_norm, weights.k_norm)
    return _Layer(*matrices, *(None if norm is None else _at(norm) for norm in norms), weights.window or 0)


def _matrix(linear: Linear) -> _Matrix:
    assert linear.in_c is not None
    bias = None if linear.bias is None else _at(linear.bias)
    scales = linear.in_c.scales if isinstance(linear.in_c, Int8Weight) else None
    where = (_at(linear.in_c.packed), None if scales is None else _at(scales), bias)
    return _Matrix(*where, linear.out_features, linear.in_features)


def _at(tensor: Tensor) -> int:
    assert tensor.is_contiguous(), f"a tensor of shape {tuple(tensor.shape)} is not contiguous"
    return tensor.data_ptr()
