"""Words that differ, and the text of each token."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reprise.engine_ext.answer_page.changed_words import changed_words
from reprise.engine_ext.answer_page.token_texts import token_texts
from reprise.tests.engine_ext.answer_page.pages import tokenizer

TEXTS = st.text(st.sampled_from("ab '.\n-é退🙂３"), max_size=30)


def marked(text: str, right: str) -> list[str]:
    return [piece.text for piece in changed_words(text, right).pieces if piece.is_changed]


def test_words_numbers_and_signs() -> None:
    assert marked("It costs 5 euros.", "It costs 7 euros!") == ["5", "."]
    assert marked("Order A-12 is here", "Order A-13 is here") == ["A-12"]
    assert marked("Don't wait", "Do wait") == ["Don't"]
    assert marked("same  words\nhere", "same words here") == []


def test_a_script_without_spaces_is_compared_by_character() -> None:
    assert marked("退款需要四天", "退款需要三天") == ["四"]


def test_what_is_left_out_is_counted() -> None:
    diff = changed_words("We pay.", "We pay back within three days.")
    assert (diff.changed, diff.missing) == (0, 4)


@given(TEXTS, TEXTS)
def test_pieces_are_the_text(text: str, right: str) -> None:
    diff = changed_words(text, right)
    assert "".join(piece.text for piece in diff.pieces) == text
    same = changed_words(text, text)
    assert (same.changed, same.missing) == (0, 0)


@given(st.text(max_size=40))
def test_token_texts_are_the_whole(text: str) -> None:
    ids = tokenizer.encode(text).tolist()
    texts = token_texts(ids, tokenizer.decode)
    assert len(texts) == len(ids)
    assert "".join(texts) == tokenizer.decode(ids)


def test_a_character_of_several_tokens_is_the_last_ones() -> None:
    ids = tokenizer.encode("🙂a").tolist()
    texts = token_texts(ids, tokenizer.decode)
    assert len(ids) > 2
    assert [text for text in texts if text] == ["🙂", "a"]


@pytest.mark.parametrize("bad", ["\ufffd", "a\ufffd\ufffdb"])
def test_a_sign_for_no_character_is_not_waited_for_forever(bad: str) -> None:
    texts = token_texts([0] * 20, lambda ids: bad * len(ids))
    assert "".join(texts) == bad * 20
