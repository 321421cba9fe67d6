"""Queries cut out of rendered chats, whatever the template."""

import pytest

from reprise.retrieval.query.turns import (
    QUERY_CHARACTERS,
    clip,
    learn_query_of,
    query_of_messages,
    query_of_turns,
)


def chatml(messages):
    return (
        "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
        + "<|im_start|>assistant\n"
    )


def llama2(messages):
    text = ""
    for message in messages:
        if message["role"] == "user":
            text += f"<s>[INST] {message['content']} [/INST]"
        else:
            text += f" {message['content']} </s>"
    return text


def plain(messages):
    return "".join(f"{m['role'].upper()}: {m['content']}\n" for m in messages) + "ASSISTANT:"


def llama2_with_system(messages):
    """The system prompt lies within the user's first turn."""
    if messages[0]["role"] != "system":
        return llama2(messages)
    system, first, *rest = messages
    within = f"<<SYS>>\n{system['content']}\n<</SYS>>\n\n{first['content']}"
    return llama2([{**first, "content": within}, *rest])


LONG = "please explain to me in detail how I can cancel the order that I placed on Monday"


@pytest.mark.parametrize("render", [chatml, llama2, plain])
def test_only_the_last_user_turn_is_left_of_a_chat(render):
    messages = [
        {"role": "user", "content": "hello there"},
        {"role": "assistant", "content": "good morning"},
        {"role": "user", "content": LONG},
    ]
    assert learn_query_of(render)(render(messages)) == LONG


def test_the_system_prompt_is_not_embedded():
    messages = [
        {"role": "system", "content": "You are the desk of a shop."},
        {"role": "user", "content": "And the fees?"},
    ]
    assert learn_query_of(chatml)(chatml(messages)) == "And the fees?"


def test_nor_is_one_within_the_users_turn():
    messages = [
        {"role": "system", "content": "You are the desk of a shop."},
        {"role": "user", "content": "And the fees?"},
    ]
    query_of = learn_query_of(llama2_with_system)
    assert query_of(llama2_with_system(messages)) == "And the fees?"
    assert query_of(llama2_with_system(messages[1:])) == "And the fees?"


@pytest.mark.parametrize("role", ["system", "tool", "user"])
def test_a_turn_ends_where_another_than_the_assistants_begins(role):
    messages = [
        {"role": "user", "content": LONG},
        {"role": "assistant", "content": "one moment"},
        {"role": "user", "content": "And the fees?"},
        {"role": role, "content": "Answer in one sentence."},
    ]
    query = learn_query_of(chatml)(chatml(messages))
    assert query == query_of_messages(messages)
    assert "<|" not in query


def test_half_of_a_mark_ends_no_turn():
    def render(messages):
        return "".join(f"<|{m['role']}|>{m['content']}" for m in messages) + "<|assistant|>"

    text = "what does f <| x mean in Elm, and what does x |> f mean there, please?"
    assert learn_query_of(render)(render([{"role": "user", "content": text}])) == text


def test_a_short_turn_brings_the_one_before_it():
    assert query_of_turns(["How do I cancel order 7?", "and order 8?"]) == (
        "and order 8?\nHow do I cancel order 7?"
    )
    assert query_of_turns(["How do I cancel order 7?", LONG]) == LONG


def test_chinese_turns_are_measured_in_characters():
    turn = "请问我上周一在你们网站上面订购的那一件红色外套现在已经发货了没有"
    assert query_of_turns(["你好", turn]) == turn
    assert query_of_turns(["怎么取消订单", "退款呢"]) == "退款呢\n怎么取消订单"


def test_messages_and_rendered_prompts_give_the_same_query():
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Where is my parcel?"},
        {"role": "assistant", "content": "On its way."},
        {"role": "user", "content": "since when?"},
    ]
    assert query_of_messages(messages) == learn_query_of(chatml)(chatml(messages))


def test_a_template_that_refuses_leaves_the_whole_prompt():
    def refuse(messages):
        raise RuntimeError(f"no template for {len(messages)} messages")

    assert learn_query_of(refuse)(" SELECT 1 ") == "SELECT 1"
    assert learn_query_of(None)("SELECT 1") == "SELECT 1"


def test_half_of_a_character_can_be_embedded():
    assert clip("\ud83d cancel \0\u200b") == "? cancel \0\u200b"
    assert clip("取消 😀") == "取消 😀"


def test_long_texts_keep_both_ends():
    text = "start " + "x" * 5000 + " the question"
    assert len(clip(text)) == QUERY_CHARACTERS + 1
    assert clip(text).startswith("start")
    assert clip(text).endswith("the question")
