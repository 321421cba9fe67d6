"""`/reprise/view` of a real server: what was asked to be recorded, and whose it was."""

import re
from typing import Any

import pytest

pytest.importorskip("vllm")

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1800)]

ON = {"x_reprise_record": "on"}


def text_of(page: str) -> str:
    return re.sub("<[^>]*>", "", page)


def test_each_tenant_sees_the_answers_that_it_had_recorded(reprise_server: Any) -> None:
    one, another = reprise_server.api_keys
    asked = {"max_tokens": 40, "ignore_eos": True}
    reply = reprise_server.chat("a question of the view", headers=ON, key=one, **asked)
    assert "x-reprise-info" not in reply.headers
    reprise_server.chat(
        "a streamed question of the view", headers=ON, key=one, stream=True, **asked
    )
    reprise_server.chat("a question that nobody views", key=one, **asked)
    reprise_server.chat("the other's question", headers=ON, key=another, **asked)
    page = reprise_server.send("/reprise/view", key=one)
    assert page.status == 200
    assert page.body.count("<article") == 2
    text = text_of(page.body)
    assert "a question of the view" in text
    assert "a streamed question of the view" in text
    assert "nobody views" not in text
    assert "the other's" not in text
    assert text.count("40 tokens in ") == 2
    theirs = text_of(reprise_server.send("/reprise/view", key=another).body)
    assert "the other&#x27;s question" in theirs
    assert "of the view" not in theirs
    assert reprise_server.send("/reprise/view", key=None).status in (401, 403)
    assert reprise_server.send("/reprise/view", key=one, x_reprise_admin_token="no").status == 401
    reprise_server.send("/reprise/cache?everything=true", method="DELETE")
    assert "None yet" in reprise_server.send("/reprise/view", key=one).body
    assert reprise_server.send("/reprise/stats").json["front_end"]["errors"] == {}
