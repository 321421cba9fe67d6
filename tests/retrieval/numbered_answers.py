"""Answers that tests tell apart by a number."""

from reprise.retrieval import Answer


def answer(number: int, *, namespace: str = "", size: int = 5) -> Answer:
    """Return an answer of so many tokens."""
    return Answer.create(
        prompt_token_ids=[number],
        response_token_ids=[number] * size,
        prompt_text=f"question number {number}",
        namespace=namespace,
        answer_id=f"id{number}",
    )
