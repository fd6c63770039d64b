"""What the C kernels are never given: tensors that a bare pointer would misread; and models they can't run."""

from __future__ import annotations

import pytest
import torch

from kernels.cpu.ops import fits
from kernels.table import Backend, Ops
from tests.kernels.backends import ops_or_skip
from tests.kernels.paged import Row, Shape, Text, run_attention

FP32, BF16 = torch.float32, torch.bfloat16


@pytest.fixture
def ops() -> Ops:
    """The C kernels for fp32."""
    return ops_or_skip(Backend.C)


def test_a_tensor_of_another_dtype_does_not_reach_c(ops: Ops):
    """It would be read as half or twice as many elements, past its end."""
    wrong = r"kernels for torch\.float32 were given torch\.bfloat16"
    x = torch.zeros(2, 64, dtype=BF16)
    numbers, shape, kv = torch.zeros(2, dtype=torch.int64), Shape(dtype=BF16), torch.zeros(1, 2, 1, 16, 16, dtype=BF16)
    with pytest.raises(AssertionError, match=wrong):
        ops.rms_norm(x, x[0], 1e-5)
    with pytest.raises(AssertionError, match=wrong):
        ops.silu_mul(x)
    with pytest.raises(AssertionError, match=wrong):
        ops.norm_rope_write(x, kv, numbers, numbers, torch.zeros(2, 16))
    with pytest.raises(AssertionError, match=wrong):
        run_attention(ops, shape, [Row(Text.random(shape, 3, 0), 3, 1)], [], scale=1.0)
    with pytest.raises(AssertionError, match=wrong):
        ops.sample(x, torch.zeros(2), numbers, torch.ones(2), torch.zeros(2), numbers, numbers)


def test_a_tensor_in_pieces_does_not_reach_c(ops: Ops):
    """Columns of another are copied by who needs them, or refused."""
    wide = torch.randn(4, 256)
    assert torch.equal(
        ops.rms_norm(wide[:, :64], torch.ones(64), 1e-5), ops.rms_norm(wide[:, :64].clone(), torch.ones(64), 1e-5)
    )
    with pytest.raises(AssertionError, match=r"shape \(4, 128\) is not contiguous"):
        ops.silu_mul(wide[:, :128])


@pytest.mark.parametrize(
    ("dtype", "sizes", "says"),
    [
        (FP32, (64, 112, 16), None),
        (BF16, (4096, 14336, 256), None),
        (torch.float16, (64, 112, 16), "float32 and bfloat16, not torch.float16"),
        (FP32, (64, 100, 16), r"multiples of 16 and heads up to 256; got (64, 100, 16)"),
        (FP32, (64, 112, 272), "heads up to 256"),
    ],
    ids=str,
)
def test_what_the_kernels_can_run_is_said_beforehand(dtype: torch.dtype, sizes: tuple[int, ...], says: str | None):
    """None, or the reason that the engine shows."""
    reason = fits(dtype, sizes)
    assert reason is None if says is None else reason is not None and says in reason
