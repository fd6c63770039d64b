"""The decoder: Llama, Mistral, Qwen2 and Qwen3 differ by biases, q/k norms and windows, so one class serves them.

A flat batch and the K/V pages go in, the logits of the wanted positions come out; the step's own K/V is written on
the way. Products are Linear's, everything else the table's; no op here knows which backend runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kernels.kv_scales import KvScales
from kernels.linear import Linear
from kernels.prepare_batch import FlatBatch
from kernels.table import Ops
from kernels.whole_pass import DecoderWeights
from worker.models.checkpoint import Checkpoint, Weights
from worker.models.config import ModelConfig
from worker.models.projections import Keep, Projections
from worker.models.rope import cos_sin_table


class _Layer:
    """One decoder layer's weights: packed QKV and gate-up, output and down projections, norms."""

    def __init__(
        self, checkpoint: Weights, projections: Projections, config: ModelConfig, index: int, dtype: torch.dtype
    ) -> None:
        prefix = f"model.layers.{index}."
        hidden, D, shapes = config.hidden_size, config.head_dim, config.projections

        def linear(bias: bool, *names: str) -> Linear:
            """The projections `names`, which share their input, side by side as one product."""
            inputs = shapes[names[0]][1]
            return projections.linear({f"{prefix}{name}": shapes[name][0] for name in names}, inputs, bias)

        def vector(name: str, size: int) -> Tensor:
            return checkpoint.take(f"{prefix}{name}.weight", (size,), dtype)

        self.qkv = linear(config.qkv_bias, "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        self.o = linear(config.output_bias, "self_attn.o_proj")
        self.gate_up = linear(config.mlp_bias, "mlp.gate_proj", "mlp.up_proj")
        self.down = linear(config.mlp_bias, "mlp.down_proj")
        self.input_norm = vector("input_layernorm", hidden)
        self.post_norm = vector("post_attention_layernorm", hidden)
        self.q_norm = vector("self_attn.q_norm", D) if config.qk_norm else None
        self.k_norm = vector("self_attn.k_norm", D) if config.qk_norm else None
        self.window = config.windows[index]


class Decoder:
    """A causal language model's weights and its forward pass.

    dtype is that of weights, activations and logits; keep: what the layers' linears are kept as (Projections), stored:
    how Linear stores those that are plain, while embedding, head and norms stay in dtype. `deterministic` makes a
    token's values independent of the batch.
    Raises ModelError if the checkpoint lacks a tensor, has one of another shape, or one that nothing here uses.
    """

    def __init__(
        self,
        weights: Path | Weights,
        config: ModelConfig,
        ops: Ops,
        dtype: torch.dtype,
        *,
        max_len: int,
        deterministic: bool,
        keep: Keep = Keep.AS_READ,
        stored: str = "auto",
    ) -> None:
        """weights: a directory, whose tensors are taken to the CPU, or where to take them from."""
        checkpoint = Checkpoint(weights) if isinstance(weights, Path) else weights
        self.device = checkpoint.device
        shape = (config.vocab_size, config.hidden_size)
        self.config, self.dtype, self.keep, self.stored = config, dtype, keep, stored
        self._ops, self._deterministic = ops, deterministic
        self._embedding = checkpoint.take("model.embed_tokens.weight", shape, dtype)
        how: dict[str, Any] = {"deterministic": deterministic, "weights": stored, "products": ops}
        projections = Projections(checkpoint, dtype, config.quantisation, keep, **how)
        self._layers = [_Layer(checkpoint, projections, config, i, dtype) for i in range(config.num_layers)]
        self._norm = checkpoint.take("model.norm.weight", (config.hidden_size,), dtype)
        tied = config.tied_embeddings or "lm_head.weight" not in checkpoint
        head = self._embedding if tied else checkpoint.take("lm_head.weight", shape, dtype)
        checkpoint.refuse_unused("model.")
        self._head = Linear(head, deterministic=deterministic, products=ops)
        self._cos_sin = cos_sin_table(config.rope, config.head_dim, max_len).to(self.device)
        self._scale = config.head_dim**-0.5
        self._whole_pass = ops.whole_pass_of(
            DecoderWeights(
                self._layers,
                self._embedding,
                self._norm,
                self._head,
                self._cos_sin,
                config.num_heads,
                config.num_kv_heads,
                config.rms_norm_eps,
                self._scale,
            )
        )

    def forward(
        self, batch: FlatBatch, kv: Tensor, kv_scales: KvScales | None = None, *, out: Tensor | None = None
    ) -> Tensor:
        """Logits [L, vocab] of batch.logits_index, model dtype; writes the batch's K and V. In deterministic mode
        T and L are 2 or more. The logits are `out`, or a new tensor.

        kv [layers, pages, 2, Hkv, page_size, D] model dtype, or a smaller one with scales: a pair, or a tensor
        [layers, pages, 2, Hkv, page_size] fp32.
        """
        if self._whole_pass is not None and not isinstance(kv_scales, tuple):
            logits = self._whole_pass(batch, kv, kv_scales)
            return logits if out is None else out.copy_(logits)
        ops, eps = self._ops, self.config.rms_norm_eps
        workspace = ops.attention_workspace(
            batch, kv.shape[1:], self.config.num_heads, deterministic=self._deterministic
        )
        residual, x = ops.gather_rms_norm(self._embedding, batch.input_ids, self._layers[0].input_norm, eps)
        for index, layer in enumerate(self._layers):
            scales = kv_scales[index] if isinstance(kv_scales, Tensor) else kv_scales
            x = self._attention(layer, x, kv[index], scales, batch, workspace)
            x = ops.rms_norm(x, layer.post_norm, eps, residual=residual)
            x = layer.down(ops.silu_mul(layer.gate_up(x)))
            if index + 1 < len(self._layers):
                x = ops.rms_norm(x, self._layers[index + 1].input_norm, eps, residual=residual)
        _, x = ops.gather_rms_norm(x, batch.logits_index, self._norm, eps, residual)  # only wanted rows go to the head
        return self._head(x, out=out)

    def _attention(
        self, layer: _Layer, x: Tensor, kv: Tensor, scales: KvScales | None, batch: FlatBatch, workspace: object
    ) -> Tensor:
        """x [T, hidden], kv one layer's pages -> [T, hidden]."""
        ops = self._ops
        q = ops.norm_rope_write(
            layer.qkv(x),
            kv,
            batch.positions,
            batch.slot_mapping,
            self._cos_sin,
            q_norm=layer.q_norm,
            k_norm=layer.k_norm,
            eps=self.config.rms_norm_eps,
            kv_scales=scales,
        )
        how: dict[str, Any] = {"scale": self._scale, "window": layer.window, "kv_scales": scales}
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        if batch.num_decode != 0:  # None: both kinds, as far as the host knows
            ops.decode_attention(q, kv, batch, workspace, out, **how)
        if batch.num_decode != len(batch.seq_lens):
            ops.prefill_attention(q, kv, batch, workspace, out, **how)
        return layer.o(out.flatten(1))
