"""A failure is one sequence's: what can't run is refused by field, and NaN ends the text it stands in, no other."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from kernels.table import Backend
from tests.engine.conftest import EngineOf
from tests.models.checkpoints import VOCAB, random_prompts
from tests.models.recorded import RecordedEngine
from worker.engine import FinishReason, SequenceParams, Unservable

PROMPTS = random_prompts((5, 40, 17, 90))


@pytest.mark.parametrize(
    ("field", "says", "prompt", "params"),
    [
        ("prompt", "is empty; give at least one token", [], {}),
        ("prompt_token_ids", rf"token id {VOCAB} is outside the vocabulary \(0 to {VOCAB - 1}\)", [1, VOCAB], {}),
        ("prompt_token_ids", "token id -1 is outside", [-1], {}),
        ("max_tokens", "must be at least 1; got 0", [1], {"max_tokens": 0}),
        (
            "max_tokens",
            r"prompt \(5\) and max_tokens \(60\) are 65 tokens; this worker takes 64",
            [1] * 5,
            {"max_tokens": 60},
        ),
        ("max_tokens", r"prompt \(64\) and max_tokens \(1\) are 65 tokens", [1] * 64, {"max_tokens": 1}),
        ("min_tokens", r"must be from 0 to max_tokens \(9\); got 10", [1], {"max_tokens": 9, "min_tokens": 10}),
        ("min_tokens", "got -1", [1], {"min_tokens": -1}),
        ("temperature", "must be a number from 0 to 3.4e38; got -0.1", [1], {"temperature": -0.1}),
        ("temperature", "got nan", [1], {"temperature": float("nan")}),
        ("temperature", "got inf", [1], {"temperature": float("inf")}),
        ("temperature", "got 1e.300", [1], {"temperature": 1e300}),
        ("top_k", "got -1", [1], {"top_k": -1}),
        ("top_k", "got 9223372036854775808", [1], {"top_k": 2**63}),
        ("top_p", "must be above 0 and at most 1; got 0", [1], {"top_p": 0}),
        ("top_p", "got 1.5", [1], {"top_p": 1.5}),
        ("top_p", "got nan", [1], {"top_p": float("nan")}),
        ("min_p", "must be from 0 to 1; got 2", [1], {"min_p": 2}),
        ("min_p", "got nan", [1], {"min_p": float("nan")}),
        ("seed", "must be a whole number of 64 bits; got 9223372036854775808", [1], {"seed": 2**63}),
        ("seed", "got -9223372036854775809", [1], {"seed": -(2**63) - 1}),
        ("stop_ids", "bar the whole vocabulary", [1], {"min_tokens": 1, "stop_ids": frozenset(range(VOCAB))}),
    ],
)
def test_what_can_never_run_is_refused_by_field(
    engine_of: EngineOf, field: str, says: str, prompt: list[int], params: dict[str, Any]
):
    """Nothing is queued then, and neither add nor generate begins anything."""
    engine = engine_of(max_len=64, token_budget=64)
    bad = SequenceParams(**{"max_tokens": 4, **params})
    with pytest.raises(Unservable, match=f"^{field}: .*{says}") as refused:
        engine.add(0, prompt, bad)
    assert refused.value.field == field
    with pytest.raises(Unservable, match=f"^{field}: "):
        engine.generate([[1, 2], prompt], [SequenceParams(2), bad])
    assert not engine.has_work
    assert engine.stats.steps == 0


def test_output_that_leaves_nothing_to_do_or_is_not_of_this_model_is_refused(engine_of: EngineOf):
    """As many tokens as were asked for, or one outside the vocabulary."""
    engine = engine_of()
    with pytest.raises(Unservable, match="max_tokens: 3 output tokens are there already of 3"):
        engine.add(0, [1], SequenceParams(3), output=[1, 2, 3])
    with pytest.raises(Unservable, match="prompt_token_ids: token id 900 is outside"):
        engine.add(0, [1], SequenceParams(3), output=[900])
    assert not engine.has_work


def test_the_longest_that_fits_the_pool_is_told(engine_of: EngineOf):
    """A pool smaller than the model's length is the limit."""
    with pytest.raises(Unservable, match="this worker takes 32"):
        engine_of(num_pages=2).add(0, [1] * 30, SequenceParams(3))


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 3.4e38},
        {"temperature": 1e-45},
        {"temperature": 1.0, "top_k": 2**63 - 1},
        {"temperature": 1.0, "top_p": 1e-45},
        {"temperature": 1.0, "min_p": 1.0},
        {"temperature": 1.0, "seed": -(2**63)},
        {"min_tokens": 4, "stop_ids": frozenset({-1, VOCAB, 10**30})},
        {"min_tokens": 4, "temperature": 3.4e38, "stop_ids": frozenset(range(1, VOCAB))},
    ],
    ids=str,
)
def test_values_at_the_edge_of_what_is_allowed_run(engine_of: EngineOf, params: dict[str, Any]):
    """Four tokens of the vocabulary come out."""
    (completion,) = engine_of().generate([PROMPTS[0]], SequenceParams(**{"max_tokens": 4, **params}))
    assert len(completion.token_ids) == 4
    assert all(0 <= token < VOCAB for token in completion.token_ids)


@pytest.fixture
def poisoned(model: Path, tmp_path: Path, engine_of: EngineOf) -> tuple[Path, int]:
    """The model with NaN for the embedding of one id, and that id; neither PROMPTS nor their greedy texts hold it."""
    completions = engine_of().generate(PROMPTS, SequenceParams(30))
    used = {token for text in (*PROMPTS, *(c.token_ids for c in completions)) for token in text}
    poison = next(token for token in range(10, VOCAB) if token not in used)
    directory = Path(shutil.copytree(model, tmp_path / "poisoned"))
    weights = load_file(directory / "model.safetensors")
    weights["model.embed_tokens.weight"][poison] = float("nan")
    save_file(weights, directory / "model.safetensors")
    return directory, poison


@pytest.mark.parametrize("deterministic", [False, True], ids=["fast order", "fixed order"])
def test_a_text_without_finite_logits_fails_alone(
    engine_of: EngineOf, poisoned: tuple[Path, int], backend: Backend, deterministic: bool
):
    """Its neighbours' tokens are those of the healthy model, also of those that get its pages afterwards."""
    directory, poison = poisoned
    same = {"backend": backend, "deterministic": deterministic, "max_rows": 6, "token_budget": 32, "num_pages": 30}
    texts = [completion.token_ids for completion in engine_of(**same).generate(PROMPTS, SequenceParams(30))]
    ran = RecordedEngine(engine_of(directory, **same))
    bad = {10: [poison], 11: [3] * 20 + [poison] + [4] * 50, 12: [5] * 33 + [poison]}
    for round_ in range(2):  # in the second, pages full of NaN are handed out again
        good = {100 * round_ + id_: prompt for id_, prompt in enumerate(PROMPTS)}
        ran.run({**bad, **good}, SequenceParams(30))
        assert [ran.tokens[id_] for id_ in good] == texts
        for id_ in bad:
            assert ran.tokens[id_] == []
            assert ran.reasons[id_] is FinishReason.FAILED
            assert ran.errors[id_] == "the model gave no finite logit for output token 0"
    assert ran.engine.num_free_pages == 30


def test_a_text_that_fails_keeps_what_it_had(engine_of: EngineOf, poisoned: tuple[Path, int]):
    """The error names the output token at which it failed, and the completion holds those before it."""
    directory, poison = poisoned
    engine = engine_of(directory)
    engine.add(0, PROMPTS[0], SequenceParams(30), output=[1, 2, poison])
    (emission,) = engine.step().emissions
    assert (emission.token_ids, emission.reason) == ([], FinishReason.FAILED)
    assert emission.error == "the model gave no finite logit for output token 3"
    (failed,) = engine.generate([[poison]], SequenceParams(3))
    assert (failed.token_ids, failed.finish_reason) == ([], FinishReason.FAILED)
    assert failed.error == "the model gave no finite logit for output token 0"
