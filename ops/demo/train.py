"""Train the demo model from nothing and write it as a Hugging Face directory: `python -m ops.demo.train`.

Every step draws its examples from (seed, step) alone, so a run that was stopped goes on from its last checkpoint as if
it had not been. A step's examples are cut into batches of like length, two threads each take one at a time, and the
gradients are added in the batches' order: the result does not depend on which thread was faster. Matrices are trained
with Muon, the embedding and the norms with AdamW; the loss is taken on answers alone.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, safe_open, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ops.demo.conversations import Encoded, draw_conversation, encode
from ops.demo.llama import Shape, Weights, config_json, hidden_states, init_weights, logits, pack
from ops.demo.vocabulary import BOS, END, PAD, build_tokenizer

MODEL_DIR = Path(__file__).parent / "model"


@dataclass(frozen=True)
class Recipe:
    """All that decides the weights; rates are peaks. A checkpoint is resumed by the recipe that wrote it alone."""

    seed: int = 7
    steps: int = 3600
    examples_per_step: int = 64
    batch_tokens: int = 1280  # padding included; small enough that two threads share a step evenly
    muon_rate: float = 0.012
    adamw_rate: float = 0.004
    warmup_steps: int = 100
    weight_decay: float = 0.02
    clip_norm: float = 1.0


@dataclass
class Run:
    """A training run between two steps. Times are seconds over all the processes that carried it."""

    weights: Weights
    optimizers: tuple[torch.optim.Optimizer, ...]
    step: int = 0
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0


def start(recipe: Recipe, shape: Shape) -> Run:
    """Return a run at step 0, its weights drawn from the recipe's seed."""
    weights = init_weights(shape, torch.Generator().manual_seed(recipe.seed))
    for weight in weights.values():
        weight.requires_grad_()
    matrices = [weight for name, weight in weights.items() if weight.ndim == 2 and "embed" not in name]
    others = [weight for name, weight in weights.items() if weight.ndim == 1 or "embed" in name]
    muon = torch.optim.Muon(
        matrices, lr=recipe.muon_rate, weight_decay=recipe.weight_decay, adjust_lr_fn="original", momentum=0.95
    )
    adamw = torch.optim.AdamW(others, lr=recipe.adamw_rate, betas=(0.9, 0.98), weight_decay=0.0)
    return Run(weights, (muon, adamw))


def rate_at(recipe: Recipe, step: int) -> float:
    """Return the learning rate of a step as a share of its peak: a short rise, a plateau, then down to 0 in a line."""
    rise = min(1.0, (step + 1) / recipe.warmup_steps)
    fall = min(1.0, (recipe.steps - step) / (0.6 * recipe.steps))
    return rise * fall


def draw_batches(recipe: Recipe, step: int, tokenizer: PreTrainedTokenizerFast) -> list[list[Encoded]]:
    """Draw a step's examples and cut them, by length, into batches of at most `batch_tokens` padded tokens."""
    rng = Random(f"{recipe.seed} {step}")
    drawn = encode(tokenizer, [draw_conversation(rng) for _ in range(recipe.examples_per_step)])
    batches: list[list[Encoded]] = [[]]
    for row in sorted(drawn, key=lambda row: len(row.ids)):
        if batches[-1] and (len(batches[-1]) + 1) * len(row.ids) > recipe.batch_tokens:
            batches.append([])
        batches[-1].append(row)
    return batches[::-1]  # the longest first, so that no thread starts one while the other has none left


def gradients(packed: Weights, shape: Shape, batch: Sequence[Encoded]) -> tuple[Tensor, list[Tensor]]:
    """Return a batch's weighted sum of answer losses (fp32 scalar) and its fp32 gradient for each packed weight."""
    length = max(len(row.ids) for row in batch)
    ids = torch.zeros(len(batch), length, dtype=torch.long)
    share = torch.zeros(len(batch), length)
    for at, row in enumerate(batch):
        ids[at, : len(row.ids)] = torch.tensor(row.ids)
        share[at, : len(row.ids)] = torch.tensor(row.shares)
    predicts = share[:, 1:] > 0
    states = hidden_states(packed, shape, ids)[:, :-1][predicts]
    losses = F.cross_entropy(logits(packed, states), ids[:, 1:][predicts], reduction="none")
    loss = (losses * share[:, 1:][predicts]).sum()
    return loss.detach(), [grad.float() for grad in torch.autograd.grad(loss, list(packed.values()))]


def take_step(
    run: Run, recipe: Recipe, shape: Shape, tokenizer: PreTrainedTokenizerFast, pool: ThreadPoolExecutor
) -> float:
    """Carry the run one step on; return the step's mean loss per answer token, weighted as `encode` weighs them."""
    batches = draw_batches(recipe, run.step, tokenizer)
    total = sum(sum(row.shares) for batch in batches for row in batch)
    packed = pack(run.weights)
    leaves = {name: weight.detach().requires_grad_() for name, weight in packed.items()}
    loss = 0.0
    summed = [torch.zeros_like(weight, dtype=torch.float32) for weight in leaves.values()]
    for batch_loss, grads in pool.map(lambda batch: gradients(leaves, shape, batch), batches):
        loss += batch_loss.item() / total
        for into, grad in zip(summed, grads, strict=True):
            into.add_(grad, alpha=1 / total)
    for optimizer in run.optimizers:
        optimizer.zero_grad()
    torch.autograd.backward(list(packed.values()), [grad.bfloat16() for grad in summed])
    torch.nn.utils.clip_grad_norm_(run.weights.values(), recipe.clip_norm)
    for optimizer, peak in zip(run.optimizers, (recipe.muon_rate, recipe.adamw_rate), strict=True):
        optimizer.param_groups[0]["lr"] = peak * rate_at(recipe, run.step)
        optimizer.step()
    run.step += 1
    return loss


def save_checkpoint(run: Run, recipe: Recipe, path: Path) -> None:
    """Write the run to one safetensors file, whole or not at all."""
    tensors = {f"weight/{name}": weight.detach() for name, weight in run.weights.items()}
    for at, optimizer in enumerate(run.optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            tensors.update({f"optimizer/{at}/{index}/{name}": value for name, value in state.items()})
    told = {"recipe": asdict(recipe), "step": run.step, "cpu": run.cpu_seconds, "wall": run.wall_seconds}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, {"run": json.dumps(told)})
    os.replace(partial, path)


def load_checkpoint(recipe: Recipe, shape: Shape, path: Path) -> Run:
    """Read a run back. Raises ValueError where the file's recipe is another than `recipe`."""
    with safe_open(path, "pt") as file:
        told = json.loads(file.metadata()["run"])
    if told["recipe"] != asdict(recipe):
        raise ValueError(
            f"{path} was written by another recipe: {told['recipe']}, expected {asdict(recipe)}; remove it"
        )
    run = start(recipe, shape)
    tensors = load_file(path)
    for name, weight in run.weights.items():
        weight.data.copy_(tensors[f"weight/{name}"])
    for at, optimizer in enumerate(run.optimizers):
        saved = optimizer.state_dict()
        for key, value in tensors.items():
            if key.startswith(f"optimizer/{at}/"):
                index, name = key.split("/")[2:]
                saved["state"].setdefault(int(index), {})[name] = value
        optimizer.load_state_dict(saved)
    run.step, run.cpu_seconds, run.wall_seconds = told["step"], told["cpu"], told["wall"]
    return run


def write_model(run: Run, recipe: Recipe, shape: Shape, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the weights in bf16 and all that `transformers` needs beside them into the directory `out`."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(out)
    weights = {name: weight.detach().bfloat16() for name, weight in run.weights.items()}
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    bos, end, pad = (tokenizer.convert_tokens_to_ids(token) for token in (BOS, END, PAD))
    generation = {"bos_token_id": bos, "eos_token_id": [end], "pad_token_id": pad, "do_sample": False}
    training = {
        "recipe": asdict(recipe),
        "steps_done": run.step,
        "parameters": sum(weight.numel() for weight in run.weights.values()),
        "cpu_minutes": round(run.cpu_seconds / 60, 1),
        "wall_minutes": round(run.wall_seconds / 60, 1),
    }
    files = {"config": config_json(shape, bos, end, pad), "generation_config": generation, "training": training}
    for name, content in files.items():
        (out / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")


def train(recipe: Recipe, out: Path, work: Path, stop_after: int | None = None, save_every_s: float = 300.0) -> Run:
    """Train to the recipe's end, or `stop_after` more steps; leave a checkpoint in `work`, the model in `out`."""
    tokenizer = build_tokenizer()
    shape = Shape(vocab_size=len(tokenizer))
    path = work / "checkpoint.safetensors"
    run = load_checkpoint(recipe, shape, path) if path.exists() else start(recipe, shape)
    last = recipe.steps if stop_after is None else min(recipe.steps, run.step + stop_after)
    wall, cpu, saved = time.monotonic() - run.wall_seconds, time.process_time() - run.cpu_seconds, time.monotonic()
    # One thread to a product: two threads on products of this size wait for each other more than they work, and where
    # something else wants a core too they are ten times slower (measured: 1.1k against 10k tokens a second).
    with ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        while run.step < last:
            loss = take_step(run, recipe, shape, tokenizer, pool)
            run.wall_seconds, run.cpu_seconds = time.monotonic() - wall, time.process_time() - cpu
            if run.step % 20 == 0:
                print(f"step {run.step}/{recipe.steps}  loss {loss:.4f}  {run.wall_seconds:.0f} s", flush=True)
            if time.monotonic() - saved > save_every_s:
                save_checkpoint(run, recipe, path)
                saved = time.monotonic()
    save_checkpoint(run, recipe, path)
    write_model(run, recipe, shape, tokenizer, out)
    return run


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m ops.demo.train", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=MODEL_DIR, help="directory the model is written to")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "slipstream-demo-model")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="length of the whole run")
    parser.add_argument("--stop-after", type=int, help="stop after so many more steps; run again to go on")
    given = parser.parse_args(arguments)
    recipe = replace(Recipe(), seed=given.seed, steps=given.steps)
    torch.set_num_threads(1)  # as the pool's threads
    run = train(recipe, given.out, given.work, given.stop_after)
    print(f"{given.out}: {run.step} steps, {run.cpu_seconds / 60:.1f} CPU minutes, {run.wall_seconds / 60:.1f} minutes")


if __name__ == "__main__":
    main()
