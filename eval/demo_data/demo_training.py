"""Training of the demo model and its tokenizer, on two CPU cores in a few minutes."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from reprise.eval.demo_data.demo_recipe import Recipe
from reprise.eval.demo_data.demo_tokenizer import render_prompt, save_tokenizer, train_tokenizer
from reprise.eval.demo_data.demo_trace import make_demo_trace, training_rows

_TOKENIZER_ROWS = 2000
_POOLED_STEPS = 16
_WARMUP_STEPS = 30
_IGNORED = -100  # cross-entropy skips such targets


def train_demo_tokenizer(recipe: Recipe) -> Tokenizer:
    """The tokenizer of a recipe, from the trace's warm rows and a sample of the training rows."""
    rows = itertools.chain(
        (row for row in make_demo_trace(recipe.seed) if row.warm),
        itertools.islice(training_rows(recipe.seed), _TOKENIZER_ROWS),
    )
    texts = (text for row in rows for text in (row.prompt, row.response))
    return train_tokenizer(texts, vocab_size=recipe.vocab_size)


def train_demo_model(recipe: Recipe, folder: Path) -> None:
    """Train model and tokenizer of a recipe and write both into `folder`."""
    tokenizer = train_demo_tokenizer(recipe)
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(_model_config(recipe, vocab_size=tokenizer.get_vocab_size()))
    _train(model, tokenizer, recipe)
    model.to(getattr(torch, recipe.dtype))
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    save_tokenizer(tokenizer, folder, max_tokens=recipe.max_tokens)


def _model_config(recipe: Recipe, *, vocab_size: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_heads,
        num_key_value_heads=recipe.num_heads,
        max_position_embeddings=recipe.max_tokens,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )


def _train(model: LlamaForCausalLM, tokenizer: Tokenizer, recipe: Recipe) -> None:
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    known = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in known]
    # Muon needs about half of AdamW's steps on a model of this size, which is most of the budget.
    optimizers = (
        torch.optim.Muon(matrices, lr=recipe.matrix_lr, weight_decay=0.0),
        torch.optim.AdamW(others, lr=recipe.vector_lr, betas=(0.9, 0.95), weight_decay=0.0),
    )
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda step: _lr_scale(step, recipe.steps))
        for o in optimizers
    ]
    model.train()
    progress = Progress(
        TextColumn("Training the demo model (once)"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        console=Console(stderr=True),
    )
    with progress:
        task = progress.add_task("", total=recipe.steps, loss=math.nan)
        for input_ids, targets in itertools.islice(_batches(tokenizer, recipe), recipe.steps):
            logits = model(input_ids=input_ids).logits
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), targets.flatten(), ignore_index=_IGNORED
            )
            torch.autograd.backward(loss)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            progress.update(task, advance=1, loss=loss.item())


def _lr_scale(step: int, steps: int) -> float:
    """Linear warm-up, then linear decay to nothing."""
    return min((step + 1) / _WARMUP_STEPS, max(0.0, 1 - step / steps))


def _batches(tokenizer: Tokenizer, recipe: Recipe) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Input ids and targets, int64 [rows, tokens]; rows of like length together, padded with 0.

    Only the tokens of the answer are targets.
    """
    rng = random.Random(recipe.seed)
    rows = training_rows(recipe.seed)
    while True:
        pool = []
        for row in itertools.islice(rows, _POOLED_STEPS * recipe.rows_per_step):
            prompt = tokenizer.encode(render_prompt(row.prompt)).ids
            pool.append((prompt, [*tokenizer.encode(row.response).ids, 0]))
        pool.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
        for step in rng.sample(range(_POOLED_STEPS), _POOLED_STEPS):
            yield _padded(pool[step * recipe.rows_per_step :][: recipe.rows_per_step])


def _padded(pairs: list[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    length = max(len(prompt) + len(answer) for prompt, answer in pairs) - 1
    input_ids = torch.zeros(len(pairs), length, dtype=torch.int64)
    targets = torch.full_like(input_ids, _IGNORED)
    for row, (prompt, answer) in enumerate(pairs):
        ids = torch.tensor(prompt + answer)
        input_ids[row, : len(ids) - 1] = ids[:-1]
        targets[row, len(prompt) - 1 : len(ids) - 1] = ids[len(prompt) :]
    return input_ids, targets
