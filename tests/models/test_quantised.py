"""Checkpoints of AWQ, GPTQ and FP8: the logits of the same model with its weights written out, in every layout."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kernels.fp8_linear import Fp8Weight
from kernels.table import Backend, Ops, ops_for
from tests.models.checkpoints import load, reference_logits
from tests.models.direct import CHUNKS, TEXTS, DirectRun, worst
from tests.models.quantised import FAMILIES, LAYOUTS, Written, write
from worker.models.checkpoint import Checkpoint
from worker.models.config import read_config
from worker.models.decoder import Decoder
from worker.models.errors import ModelError
from worker.models.projections import Keep, rounded

TOLERANCE = 1e-4
TORCH = ops_for(Backend.TORCH)
Q, QWEIGHT = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.q_proj.qweight"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Written]:
    """written(layout, family): each made once. Copy it before changing it."""
    made: dict[tuple[str, ...], Written] = {}

    def get(layout: str, family: str = FAMILIES[0]) -> Written:
        if (layout, family) not in made:
            made[layout, family] = write(tmp_path_factory.mktemp("quantised"), layout, family)
        return made[layout, family]

    return get


def decoder(directory: Path, keep: Keep = Keep.AS_READ, *, ops: Ops = TORCH, fixed: bool = False) -> Decoder:
    config = read_config(directory)
    with torch.inference_mode():
        return Decoder(directory, config, ops, torch.float32, max_len=512, deterministic=fixed, keep=keep)


def difference(made: Written, keep: Keep, *, fixed: bool = False) -> float:
    """Greatest difference of our logits of the packed model from transformers' of the plain one."""
    ours = DirectRun(decoder(made.packed, keep, fixed=fixed), TORCH, TEXTS).run(CHUNKS)
    model = load(made.plain)
    return worst(ours, [reference_logits(model, text) for text in TEXTS])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", ["awq", "gptq"])
@pytest.mark.parametrize("keep", [Keep.AS_READ, Keep.PLAIN], ids=["packed", "written out"])
def test_every_family_loads_in_both_layouts_of_four_bits(written, layout: str, family: str, keep: Keep):
    """Biases and q/k norms among them; multiplied as codes, and written out in the model's dtype at the start."""
    assert difference(written(layout, family), keep) < TOLERANCE


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name.startswith("gptq") and name != "gptq"])
@pytest.mark.parametrize("keep", [Keep.AS_READ, Keep.PLAIN], ids=["packed", "written out"])
def test_gptq_in_all_its_kinds(written, layout: str, keep: Keep):
    """8 bits, symmetric or not, one group for all inputs, inputs in another order, zeros as they are."""
    assert difference(written(layout), keep) < TOLERANCE


def test_in_the_fixed_order_too(written):
    """Deterministic mode takes packed weights."""
    assert difference(written("gptq, act-order"), Keep.AS_READ, fixed=True) < TOLERANCE


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name.startswith("fp8")])
def test_fp8_written_out_is_exact_and_multiplied_as_it_is_nearly_so(written, layout: str):
    """As it is, activations are rounded to three bits of mantissa: logits of deviation 1 move, by a tenth or so."""
    made = written(layout)
    assert difference(made, Keep.PLAIN) < TOLERANCE
    ours = torch.cat(DirectRun(decoder(made.packed), TORCH, TEXTS).run(CHUNKS))
    model = load(made.plain)
    theirs = torch.cat([reference_logits(model, text) for text in TEXTS])
    assert 1e-3 < float((ours - theirs).square().mean().sqrt()) < 0.2


def test_modules_left_out_of_the_quantisation_are_read_as_they_are(tmp_path: Path):
    """An output projection and a whole MLP in fp32, beside packed ones."""
    made = write(tmp_path, "awq", left_out=("o_proj", "1.mlp.gate_proj", "1.mlp.up_proj", "1.mlp.down_proj"))
    assert difference(made, Keep.AS_READ) < TOLERANCE


def changed(
    made: Written,
    to: Path,
    *,
    tensors: Callable[[dict[str, Tensor]], object] = lambda tensors: None,
    config: dict[str, Any] | None = None,
) -> Path:
    """A copy of the packed checkpoint, changed."""
    to.mkdir()
    held = load_file(made.packed / "model.safetensors")
    tensors(held)
    save_file({name: tensor.contiguous() for name, tensor in held.items()}, to / "model.safetensors")
    raw = json.loads((made.packed / "config.json").read_text())
    raw["quantization_config"] |= config or {}
    (to / "config.json").write_text(json.dumps(raw))
    return to


def test_biases_of_zeros_that_writers_add_are_passed_over_and_others_refused(written, tmp_path: Path):
    """A Llama has none; what has one is another model."""
    zeros = changed(written("gptq"), tmp_path / "zeros", tensors=lambda t: t.update({f"{Q}.bias": torch.zeros(64)}))
    decoder(zeros)
    ones = changed(written("gptq"), tmp_path / "ones", tensors=lambda t: t.update({f"{Q}.bias": torch.ones(64)}))
    with pytest.raises(ModelError, match=r"q_proj\.bias is in the weights, but config.json asks for none"):
        decoder(ones)


SCALE = f"{Q}.weight_scale"


@pytest.mark.parametrize(
    ("layout", "change", "says"),
    [
        ("awq", lambda t: t.pop(f"{Q}.qzeros"), f"hold no tensor {Q}.qzeros; is the checkpoint complete"),
        ("awq", lambda t: t.pop(QWEIGHT), f"hold no tensor {QWEIGHT}"),
        ("awq", lambda t: t.update({QWEIGHT: t[QWEIGHT].t()}), rf"{QWEIGHT} has shape \(8, 64\), .* \(64, 8\)"),
        ("gptq", lambda t: t.update({QWEIGHT: t[QWEIGHT][:4]}), rf"{QWEIGHT} has shape \(4, 64\), .* \(8, 64\)"),
        ("gptq", lambda t: t[f"{Q}.g_idx"].fill_(0), "g_idx does not give 32 inputs to each of 2 groups; is the"),
        (
            "gptq, act-order",
            lambda t: t[f"{Q}.g_idx"].copy_(t[f"{Q}.g_idx"].flip(0)),
            "q_proj, .*k_proj, .*v_proj can't be one product: they have their inputs in different orders",
        ),
        (
            "awq",
            lambda t: (t.pop(QWEIGHT), t.update({f"{Q}.weight": torch.zeros(64, 64)})),
            "can't be one product: some are quantised and some are not",
        ),
        ("fp8, a scale an output", lambda t: t.pop(SCALE), f"hold no tensor {SCALE}"),
        (
            "fp8, a scale an output",
            lambda t: t.update({SCALE: torch.ones(2, 1)}),
            rf"{SCALE} has shape \(2, 1\), .* \(64, 1\)",
        ),
        (
            "fp8, a scale an output",
            lambda t: t.update({f"{SCALE}_inv": t.pop(SCALE)}),
            r"scales of blocks \(weight_scale_inv\) is not supported",
        ),
    ],
)
def test_damaged_checkpoints_are_refused_by_the_tensors_name(
    written, tmp_path: Path, layout: str, change: Callable[[dict[str, Tensor]], object], says: str
):
    """What is missing, of which shape it is against which it should be."""
    with pytest.raises(ModelError, match=says) as refused:
        decoder(changed(written(layout), tmp_path / "changed", tensors=change))
    assert "\n" not in str(refused.value)


def test_a_group_that_does_not_divide_the_inputs_is_refused(written, tmp_path: Path):
    """By the projection, its inputs and the group."""
    with pytest.raises(ModelError, match=r"q_proj has 64 inputs and 64 outputs; .* takes inputs in multiples of 96"):
        decoder(changed(written("awq"), tmp_path / "changed", config={"group_size": 96}))


def test_what_was_read_is_let_go_once_it_is_packed(written):
    """Of a whole layer's codes, zeros and scales none is held when the decoder is there."""

    class Watched(Checkpoint):
        taken: list[weakref.ref[Tensor]]

        def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
            tensor = super().take(name, shape, dtype)
            if name.rpartition(".")[2] in ("qweight", "qzeros"):
                self.taken.append(weakref.ref(tensor))
            return tensor

    directory = written("awq").packed
    watched = Watched(directory)
    watched.taken = []
    made = Decoder(watched, read_config(directory), TORCH, torch.float32, max_len=64, deterministic=False)
    assert len(watched.taken) == 2 * 7 * made.config.num_layers
    assert not any(ref() is not None for ref in watched.taken)


@pytest.mark.parametrize("keep", [Keep.INT8, Keep.INT4, Keep.FP8])
def test_plain_weights_are_rounded_at_the_start(written, keep: Keep):
    """The logits are those of the model whose projections are rounded so; FP8's activations are rounded besides."""
    made = written("awq")  # its plain twin is a checkpoint like any other
    ours = torch.cat(DirectRun(decoder(made.plain, keep), TORCH, TEXTS).run(CHUNKS))
    model = load(made.plain)
    plain = torch.cat([reference_logits(model, text) for text in TEXTS])
    with torch.no_grad():
        for name, module in model.named_modules():
            if name.endswith("_proj"):
                weight = rounded(module.weight, keep)
                whole = weight.whole(torch.float32)
                module.weight.copy_(whole if isinstance(weight, Fp8Weight) else whole.t())
    theirs = torch.cat([reference_logits(model, text) for text in TEXTS])
    assert float((theirs - plain).abs().max()) > 100 * TOLERANCE  # the rounding shows
    if keep is Keep.FP8:
        assert 1e-3 < float((ours - theirs).square().mean().sqrt()) < 0.25  # logits of deviation 1
    else:
        assert worst([ours], [theirs]) < TOLERANCE
