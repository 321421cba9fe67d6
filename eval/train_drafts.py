"""Learn the weights that drafting starts from, and write spec/predictor/start_weights.npz.

    python eval/train_drafts.py --tokenizer gpt2.json

What it learns from is at hand wherever the project is installed, and is none of the traces that
figures are reported on: docstrings and functions of installed packages ("what does X do": the
docstring; "write X": the function), and the project's own demo trace. They are replayed with exact
greedy acceptance; the weights after the last one, with learning rates that let them go on
adapting, are the start values.
"""

from __future__ import annotations

import ast
import importlib.util
import random
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import tokenizers
import typer

from reprise.eval.demo_data.demo_trace import make_demo_trace
from reprise.eval.report.command_line import InputError, run_command
from reprise.retrieval.search.embedding import Embedder
from reprise.spec import DraftConfig, DraftProvider
from reprise.spec.api.near_answer import PlainNearAnswer
from reprise.spec.predictor.features import FIRST_SQUARE, HASHED_TOKEN, Weights, prior_weights
from reprise.spec.predictor.weights import START_WEIGHTS, load_weights, save_weights

SOURCES = (
    "scipy/stats", "scipy/signal", "torch/nn", "torch/distributions", "numpy/lib",
    "sklearn/linear_model", "sklearn/ensemble", "networkx/algorithms/centrality",
    "networkx/algorithms/shortest_paths", "transformers/models/llama", "transformers/models/gpt2",
    "transformers/models/bert", "transformers/models/t5",
)  # fmt: skip
MAX_SQUARE = 2.0
"""Squares of gradients are cut to this, so that the weights go on adapting."""
NEAR = 32
MIN_COSINE = 0.2
BLOCK = 40


class Pair(NamedTuple):
    prompt: str
    response: str
    warm: bool


def spoken(name: str) -> str:
    return re.sub(r"([a-z])([A-Z])", r"\1 \2", name).replace("_", " ").strip().lower()


def source_files() -> Iterator[Path]:
    for source in SOURCES:
        package, _, rest = source.partition("/")
        spec = importlib.util.find_spec(package)
        found: list[Path] = []
        if spec is not None and spec.origin is not None:
            found = sorted((Path(spec.origin).parent / rest).rglob("*.py"))
        if not found:  # weights would be learned from less, and nobody would see it
            raise InputError(f"no source of {source} is installed here")
        yield from found


def docstrings_and_functions() -> tuple[list[Pair], list[Pair]]:
    docstrings: list[Pair] = []
    functions: list[Pair] = []
    for path in source_files():
        text = path.read_text(encoding="utf-8")
        place = path.stem.replace("_", " ")
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef | ast.ClassDef):
                continue
            docstring = ast.get_docstring(node) or ""
            if 200 < len(docstring) < 1500:
                question = f"What does {spoken(node.name)} in {place} do and how do I call it?"
                docstrings.append(Pair(question, docstring, warm=False))
            body = "\n".join(text.split("\n")[node.lineno - 1 : node.end_lineno])
            if isinstance(node, ast.FunctionDef) and 80 < len(body) < 500:
                names = ", ".join(argument.arg for argument in node.args.args)
                question = f"Write {spoken(node.name)} for {place} with arguments {names}"
                functions.append(Pair(question, body, warm=False))
    return docstrings, functions


def sample(pairs: list[Pair], count: int, seed: int) -> list[Pair]:
    """About `count` pairs, blocks of neighbours so that related ones are there; a third is warm."""
    generator = random.Random(seed)
    blocks = [pairs[i : i + BLOCK] for i in range(0, len(pairs), BLOCK)]
    generator.shuffle(blocks)
    chosen: list[Pair] = []
    while blocks and len(chosen) < count:
        chosen += blocks.pop()
    generator.shuffle(chosen)
    return [pair._replace(warm=i < count // 3) for i, pair in enumerate(chosen)]


def replay(
    pairs: list[Pair], provider: DraftProvider, tokenizer: tokenizers.Tokenizer, embedder: Embedder
) -> None:
    """Run the pairs through as a greedy engine would, every answer joining the cache."""
    max_draft = provider.config.num_speculative_tokens
    vectors = np.asarray(embedder.encode([pair.prompt for pair in pairs]))
    answers = [np.array(tokenizer.encode(pair.response).ids, np.int32) for pair in pairs]
    prompts = [np.array(tokenizer.encode(pair.prompt).ids, np.int32) for pair in pairs]
    cached: list[int] = []
    for i in sorted(range(len(pairs)), key=lambda i: not pairs[i].warm):
        if not pairs[i].warm:
            cosines = vectors[cached] @ vectors[i]
            near = [
                PlainNearAnswer(
                    str(cached[k]), float(cosines[k]), prompts[cached[k]], answers[cached[k]]
                )
                for k in np.argsort(-cosines)[:NEAR]
                if cosines[k] > MIN_COSINE
            ]
            provider.start("", prompts[i])
            provider.attach("", near)
            answer = answers[i].tolist()
            provider.observe("", answer[:1])
            at = 1
            while at < len(answer):
                draft = provider.propose("", limit=min(max_draft, len(answer) - at))
                accepted = 0
                while accepted < len(draft) and draft[accepted] == answer[at + accepted]:
                    accepted += 1
                provider.observe("", answer[at : at + accepted + 1])
                at += accepted + 1
            provider.finish("")
        provider.add_answer(str(i), answers[i])
        cached.append(i)


def forget_hashed(weights: Weights) -> None:
    """What is tied to one tokenizer's token ids is of no use to another."""
    weights.choice[HASHED_TOKEN:] = 0.0
    weights.choice_squares[HASHED_TOKEN:] = FIRST_SQUARE


@contextmanager
def left_as_it_was(path: Path) -> Iterator[None]:
    """Put a file back if the block does not come to its end: providers begin with its weights."""
    before = path.read_bytes() if path.exists() else None
    try:
        yield
    except BaseException:
        if before is None:
            path.unlink(missing_ok=True)
        else:
            path.write_bytes(before)
        raise


def main(
    tokenizer: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, help="A tokenizers.Tokenizer file.")
    ],
    output: Annotated[Path, typer.Option(help="Where to write the weights.")] = START_WEIGHTS,
) -> None:
    """Learn and write the start values."""
    encoder = tokenizers.Tokenizer.from_file(str(tokenizer))
    embedder = Embedder()
    docstrings, functions = docstrings_and_functions()
    demo = [Pair(row.query or row.prompt, row.response, row.warm) for row in make_demo_trace(7)]
    parts = (sample(docstrings, 500, 1), demo, sample(functions, 800, 2))
    with left_as_it_was(output):
        learn(parts, output, encoder, embedder)


def learn(
    parts: Sequence[list[Pair]],
    output: Path,
    encoder: tokenizers.Tokenizer,
    embedder: Embedder,
) -> None:
    """Replay one part after the other, and write what was learned."""
    weights = prior_weights()
    for pairs in parts:
        # First: a new provider reads the shipped file, which may be of other tables than now.
        save_weights(weights, output)
        provider = DraftProvider(DraftConfig(num_speculative_tokens=64, verify_cost=0.02))
        provider.load(output)
        replay(pairs, provider, encoder, embedder)
        provider.save(output)
        load_weights(weights, output)
        forget_hashed(weights)
        print(f"{len(pairs)} pairs: {provider.stats()}", flush=True)
    squares = {
        name: np.minimum(getattr(weights, name), np.float32(MAX_SQUARE))
        for name in ("mixture_squares", "choice_squares")
    }
    rounded = [np.float32(np.float16(table)) for table in weights._replace(**squares)]
    save_weights(Weights(*rounded), output)


if __name__ == "__main__":
    sys.exit(run_command(main, name="train_drafts.py"))
