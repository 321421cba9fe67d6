"""Two servers that share their answers through Redis.

python examples/redis_two_servers.py redis://localhost:6379/0 MODEL [vllm options]
"""

import sys
import time
from contextlib import ExitStack

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


def main() -> None:
    """Ask the first server, and then the second in other words."""
    redis_url, model, *options = sys.argv[1:]
    with ExitStack() as servers:
        urls = [
            servers.enter_context(server(model, options, REPRISE_RETRIEVAL__URL=redis_url))
            for _ in range(2)
        ]
        ask(urls[0], "How do I cancel my order?")
        time.sleep(3)  # until the answer has reached Redis, and the other server from there
        ask(urls[1], "I want to cancel my order, how?")


if __name__ == "__main__":
    main()
