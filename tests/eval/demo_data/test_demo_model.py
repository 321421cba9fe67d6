"""The demo model: its size, its tokenizer, its cache, and that it answers like a support desk."""

import multiprocessing
import threading
import time
from pathlib import Path

import pytest

from reprise.eval.demo_data import demo_model, demo_training
from reprise.eval.demo_data.cached_folder import cached_folder
from reprise.eval.demo_data.demo_model import demo_tokenizer_path
from reprise.eval.demo_data.demo_recipe import RECIPE, Recipe
from reprise.eval.demo_data.demo_tokenizer import CHAT_TEMPLATE, render_prompt
from reprise.eval.demo_data.demo_trace import make_demo_trace
from reprise.eval.replay.token_rows import load_tokenizer

TINY = Recipe(hidden_size=64, intermediate_size=64, num_layers=1, num_heads=1, steps=2)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "reprise"


@pytest.mark.usefixtures("cache")
def test_answers_are_60_to_250_tokens_long() -> None:
    tokenizer = load_tokenizer(demo_tokenizer_path())
    assert tokenizer.end_token_id == 0
    lengths = [len(tokenizer.encode(row.response)) for row in make_demo_trace()]
    assert min(lengths) >= 60
    assert max(lengths) <= 250


@pytest.mark.usefixtures("cache")
def test_tokenizer_gives_every_text_back() -> None:
    tokenizer = load_tokenizer(demo_tokenizer_path()).tokenizer
    for text in ("Order C-90917, $5.07 on 3 May!", "ünïcödé 你好 \n\t", ""):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.slow
def test_trained_model_is_small_and_cached_whole(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer, LlamaConfig

    folder = demo_model.demo_model_path(TINY)
    assert folder.parent == cache
    with monkeypatch.context() as again:
        again.setattr(demo_training, "train_demo_model", lambda *_: pytest.fail("trained again"))
        assert demo_model.demo_model_path(TINY) == folder
    assert LlamaConfig.from_pretrained(folder).vocab_size == TINY.vocab_size
    tokenizer = AutoTokenizer.from_pretrained(folder)
    message = [{"role": "user", "content": "Hi"}]
    rendered = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    assert rendered == render_prompt("Hi")
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert tokenizer.eos_token_id == 0


def test_the_bundled_model_is_of_the_current_recipe(cache: Path) -> None:
    """Nobody trains what everybody has. After a change of the recipe: demo_model.py --bundle."""
    assert demo_model.bundled_recipe_hash() == demo_model._recipe_hash(RECIPE)
    assert demo_model.demo_model_path() == demo_model.BUNDLED
    assert demo_tokenizer_path() == demo_model.BUNDLED / "tokenizer.json"
    assert not cache.exists(), "something was trained"


def test_the_bundled_tokenizer_is_what_the_recipe_makes(cache: Path) -> None:
    from reprise.eval.demo_data.demo_training import train_demo_tokenizer

    assert not cache.exists()
    made = train_demo_tokenizer(RECIPE).get_vocab()
    assert made == load_tokenizer(demo_tokenizer_path()).tokenizer.get_vocab()


@pytest.mark.usefixtures("cache")
def test_another_recipe_is_another_folder() -> None:
    folders = {demo_tokenizer_path(recipe) for recipe in (TINY, RECIPE, Recipe(seed=1))}
    assert len(folders) == 3


def test_recipe_stays_below_five_million_parameters() -> None:
    embedding = RECIPE.vocab_size * RECIPE.hidden_size
    layer = RECIPE.hidden_size * (4 * RECIPE.hidden_size + 3 * RECIPE.intermediate_size + 2)
    assert embedding + RECIPE.num_layers * layer + RECIPE.hidden_size <= 5_000_000


def test_a_failed_build_leaves_nothing_behind(cache: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        cached_folder("thing", fail, doing="failing")
    assert not [path for path in cache.iterdir() if path.is_dir()]


def _build_slowly(cache_home: str, counter: Path) -> None:
    import os

    os.environ["XDG_CACHE_HOME"] = cache_home

    def build(folder: Path) -> None:
        with counter.open("a") as file:
            file.write("x")
        time.sleep(0.5)
        (folder / "done").touch()

    assert (cached_folder("thing", build, doing="building") / "done").exists()


@pytest.mark.slow
def test_processes_that_ask_at_once_build_once(cache: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    arguments = (str(cache.parent), tmp_path / "counter")
    processes = [context.Process(target=_build_slowly, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert (tmp_path / "counter").read_text() == "x"


def test_threads_that_ask_at_once_build_once(cache: Path, tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    threads = [
        threading.Thread(target=_build_slowly, args=(str(cache.parent), counter)) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter.read_text() == "x"


@pytest.mark.slow
def test_greedy_answers_end_and_read_like_support_answers(demo_model: Path) -> None:
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(demo_model)
    model = LlamaForCausalLM.from_pretrained(demo_model, dtype=torch.float32).eval()
    rows = [row for row in make_demo_trace() if not row.warm and row.group in _plain_topics()][:16]
    alike = 0
    for row in rows:
        ids = torch.tensor([tokenizer.encode(render_prompt(row.prompt), add_special_tokens=False)])
        with torch.no_grad():
            output = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=256, do_sample=False
            )[0, ids.shape[1] :]
        assert output[-1] == 0, row.prompt
        answer, wanted = tokenizer.decode(output, skip_special_tokens=True), row.response
        alike += len(set(answer.split()) & set(wanted.split())) > 0.8 * len(set(wanted.split()))
    assert alike >= 0.75 * len(rows)


def _plain_topics() -> set[str]:
    from reprise.eval.demo_data.demo_topics import TOPICS

    return {topic.name for topic in TOPICS}
