"""Two servers that share their answers through Redis.

python examples/redis_two_servers.py redis://localhost:6379/0 MODEL [vllm options]
"""

import re
import sys
import time
from contextlib import ExitStack

import httpx
import openai
from server import server


def ask(url: str, question: str) -> None:
    """Ask one server, and print how its cache took it."""
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="EMPTY")
    raw = client.chat.completions.with_raw_response.create(
        model=client.models.list().data[0].id,
        messages=[{"role": "user", "content": question}],
        max_tokens=48,
        temperature=0,
    )
    print(f"{url}  {raw.headers['x-reprise-cache']:10}  {question}")


def wait_for_answers(url: str) -> None:
    """Wait until a server's cache holds something to draft from; ends the program if not."""
    for _ in range(120):
        metrics = httpx.get(f"{url}/metrics").text
        if re.search(r"(?m)^reprise:retrieval_answers\{.* [1-9]", metrics):
            return
        time.sleep(0.5)
    sys.exit(f"{url} still has no answer of the other server after a minute")


def main() -> None:
    """Ask the first server, and then the second in other words."""
    redis_url, model, *options = sys.argv[1:]
    with ExitStack() as servers:
        urls = [
            servers.enter_context(server(model, options, REPRISE_RETRIEVAL__URL=redis_url))
            for _ in range(2)
        ]
        ask(urls[0], "How do I cancel my order?")
        wait_for_answers(urls[1])  # to Redis, and from there to the other server
        ask(urls[1], "I want to cancel my order, how?")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main()
