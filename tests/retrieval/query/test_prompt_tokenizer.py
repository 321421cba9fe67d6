"""Tokenizers found by name, for processes that prompts reach as token ids."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from reprise.retrieval import Answer, RetrievalConfig
from reprise.retrieval.query.prompt_tokenizer import PromptTokenizer
from reprise.retrieval.service.process_retriever import ProcessRetriever

WORDS = ["?", "<user>", "<assistant>", "be", "brief", "cancel", "my", "order", "hello", "where"]
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


@pytest.fixture
def tokenizer_folder(tmp_path):
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def test_a_folder_brings_its_chat_template_along(tokenizer_folder):
    tokenizer = PromptTokenizer(str(tokenizer_folder))
    ids = tokenizer.encode("be brief <user> hello <assistant> hello <user> cancel my order")
    assert ids == [3, 4, 1, 8, 2, 8, 1, 5, 6, 7]
    assert tokenizer.query_of(tokenizer.decode([*ids, 2])) == "cancel my order\nhello"


def test_a_file_has_none(tokenizer_folder):
    tokenizer = PromptTokenizer(str(tokenizer_folder / "tokenizer.json"))
    assert tokenizer.query_of(tokenizer.decode([5, 6, 7])) == "cancel my order"


def test_a_tokenizer_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(OSError, match="none"):
        PromptTokenizer(str(tmp_path / "none"))


@pytest.mark.slow
def test_the_process_cuts_queries_out_of_token_ids(tokenizer_folder, wait_until):
    config = RetrievalConfig(embedding_model="lexical", clauses=False)
    retriever = ProcessRetriever(config, tokenizer=str(tokenizer_folder), tokenizer_key="t")
    try:
        answer = Answer.create(
            prompt_token_ids=[3, 4, 1, 5, 6, 7, 2], response_token_ids=[8], tokenizer_key="t"
        )
        retriever.store(answer)
        wait_until(lambda: retriever.health().state == "ready")
        retriever.store(answer)
        assert retriever.flush(200)
        retriever.submit("r", namespace="", prompt_token_ids=[1, 5, 6, 7, 2])
        wait_until(lambda: retriever.poll("r") is not None)
        [near] = retriever.poll("r")
        assert near.similarity == pytest.approx(1.0, abs=1e-3)
        assert near.prompt_token_ids.tolist() == [3, 4, 1, 5, 6, 7, 2]
    finally:
        retriever.close()
