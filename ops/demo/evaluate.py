"""Exact match of the demo model on held-out prompts, per kind of task: `python -m ops.demo.evaluate`.

Half the prompts come as chats, half as plain text. An answer counts when it is the right one to the character and ended
by itself. `--through transformers` asks `transformers` the same prompts instead of our engine. Prints a table, writes
JSON with `--json`, exits 1 where a bar is missed: 97 % over all, 99.5 % over the counting kinds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ops.demo.arguments import LONGEST_ANSWER_TOKENS
from ops.demo.tasks import COUNTING_KINDS, TASKS, Example, Split, sample

MODEL_DIR = Path(__file__).parent / "model"
OVERALL_BAR = 0.97
COUNTING_BAR = 0.995
MAX_TOKENS = LONGEST_ANSWER_TOKENS + 20  # an answer that runs on is wrong; it need not run far

Answerer = Callable[[list[list[int]], int], list[list[int]]]  # prompt ids and the end id in, generated ids out


@dataclass(frozen=True)
class Asked:
    """A prompt as it was asked, and the ids that came back, the end token included where there was one."""

    example: Example
    prompt_ids: list[int]
    generated_ids: list[int]
    text: str
    exact: bool


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str, *, chat: bool) -> list[int]:
    """Return the ids of a prompt as a user's message of a chat, or as a line of plain text."""
    if chat:
        messages = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return list(tokenizer(text, add_special_tokens=False).input_ids)
    return list(tokenizer(prompt + "\n").input_ids)


def ask(model_dir: Path, examples: Sequence[Example], answer: Answerer) -> list[Asked]:
    """Ask every example, every other one as a chat, and judge what comes back."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    prompts = [prompt_ids(tokenizer, example.prompt, chat=at % 2 == 0) for at, example in enumerate(examples)]
    asked = []
    for example, prompt, ids in zip(examples, prompts, answer(prompts, tokenizer.eos_token_id), strict=True):
        ended = bool(ids) and ids[-1] == tokenizer.eos_token_id
        text = tokenizer.decode(ids[:-1] if ended else ids)
        asked.append(Asked(example, prompt, ids, text, ended and example.is_answered_by(text)))
    return asked


def through_engine(model_dir: Path, threads: int | None = None, **settings: Any) -> Answerer:
    """Answer through our engine in bf16, greedily, all prompts at once. `threads`: all cores if None."""
    from worker.engine import Engine, SequenceParams

    engine = Engine.from_pretrained(str(model_dir), dtype="bfloat16", threads=threads, **settings)

    def answer(prompts: list[list[int]], end: int) -> list[list[int]]:
        params = SequenceParams(max_tokens=MAX_TOKENS, temperature=0.0, seed=0, stop_ids=frozenset({end}))
        return [list(completion.token_ids) for completion in engine.generate(prompts, params)]

    return answer


def through_transformers(model_dir: Path) -> Answerer:
    """Answer through `transformers` in bf16, greedily, in left-padded batches of like prompts."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16)

    def answer(prompts: list[list[int]], end: int) -> list[list[int]]:
        pad = model.generation_config.pad_token_id
        answers: list[list[int]] = []
        for first in range(0, len(prompts), 64):
            batch = prompts[first : first + 64]
            width = max(map(len, batch))
            ids = torch.tensor([[pad] * (width - len(row)) + row for row in batch])
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch])
            rows = model.generate(ids, attention_mask=mask, max_new_tokens=MAX_TOKENS, do_sample=False)
            for row in rows[:, width:].tolist():
                answers.append(row[: row.index(end) + 1] if end in row else row)
        return answers

    return answer


def heldout_examples(per_kind: int, seed: int, kinds: Sequence[str] = tuple(TASKS)) -> list[Example]:
    """Draw `per_kind` different held-out prompts of each kind (fewer where fewer exist), the same for the same seed."""
    examples = []
    for kind in kinds:
        rng = Random(f"{seed} {kind}")
        drawn = {example.prompt: example for example in (sample(rng, kind, Split.HELDOUT) for _ in range(per_kind * 3))}
        examples += list(drawn.values())[:per_kind]
    return examples


def shares(asked: Sequence[Asked]) -> dict[str, float]:
    """Return the share of exact answers per kind, over the counting kinds (`counting`) and over all (`overall`)."""
    kinds = list(dict.fromkeys(one.example.kind for one in asked))
    groups = {kind: [one.exact for one in asked if one.example.kind == kind] for kind in kinds}
    counting = [exact for kind, exacts in groups.items() if kind in COUNTING_KINDS for exact in exacts]
    groups |= {"counting": counting, "overall": [one.exact for one in asked]}
    return {name: sum(exacts) / len(exacts) for name, exacts in groups.items() if exacts}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ops.demo.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=MODEL_DIR)
    parser.add_argument("--through", choices=("engine", "transformers"), default="engine")
    parser.add_argument("--kv-dtype", default="auto", help="of the engine's K/V (%(default)s)")
    parser.add_argument("--weights", default="auto", help="how the engine stores weights (%(default)s)")
    parser.add_argument("--references", action="store_true", help="a GPU's operations, in torch, where there is no GPU")
    parser.add_argument("--per-kind", type=int, default=200, help="prompts of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file the result is written to")
    parser.add_argument("--show-misses", type=int, default=0, help="print so many wrong answers of each kind")
    given = parser.parse_args(arguments)
    if given.through == "engine":
        place: dict[str, Any] = {"backend": "torch", "ahead": True} if given.references else {}
        answer = through_engine(given.model, kv_dtype=given.kv_dtype, weights=given.weights, **place)
    else:
        answer = through_transformers(given.model)
    began = time.monotonic()
    asked = ask(given.model, heldout_examples(given.per_kind, given.seed), answer)
    result = shares(asked)
    longest = max(len(one.generated_ids) for one in asked if one.exact)
    for name, share in result.items():
        print(f"{name:12} {100 * share:6.2f} %")
        misses = [one for one in asked if one.example.kind == name and not one.exact]
        for miss in misses[: given.show_misses]:
            print(f"    {miss.example.prompt!r}\n      expected {miss.example.answer!r}\n      got      {miss.text!r}")
    print(
        f"{len(asked)} prompts through {given.through} in {time.monotonic() - began:.0f} s; longest: {longest} tokens"
    )
    if given.json:
        told = {"through": given.through, "seed": given.seed, "prompts": len(asked), "longest_exact_tokens": longest}
        given.json.write_text(json.dumps(told | {"exact_match": result}, indent=2) + "\n")
    return 0 if result["overall"] >= OVERALL_BAR and result["counting"] >= COUNTING_BAR else 1


if __name__ == "__main__":
    sys.exit(main())
