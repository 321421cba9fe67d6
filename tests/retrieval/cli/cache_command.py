"""`reprise cache`, run in this process, and answers to run it on."""

import pytest
import typer
from typer.testing import CliRunner

from reprise.retrieval import Answer
from reprise.retrieval.cli.cache_cli import app


def answer(number, *, namespace="acme", created_s=None):
    return Answer.create(
        prompt_token_ids=[number],
        response_token_ids=[number, 70_000],
        prompt_text=f"question {number}",
        namespace=namespace,
        answer_id=f"id{number}",
        tokenizer_key="k",
        created_s=created_s,
    )


def run(*arguments, status=0):
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result.output


def refused(*arguments):
    """The one line of a ValueError, which the command `reprise` prints with exit status 2."""
    with pytest.raises(ValueError, match=r"\S") as caught:
        typer.main.get_command(app).main([str(a) for a in arguments], standalone_mode=False)
    assert "\n" not in str(caught.value)
    return str(caught.value)
