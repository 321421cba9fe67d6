"""A server and OpenAI's client: the same question twice, then in other words.

python examples/quickstart.py MODEL [vllm options]
python examples/quickstart.py http://localhost:8000
"""

import os
import sys
import time

import openai
from server import server


def ask(client: openai.OpenAI, question: str, **sampling: float) -> None:
    """Ask, and print how the cache took it."""
    began_s = time.monotonic()
    raw = client.chat.completions.with_raw_response.create(
        model=client.models.list().data[0].id,
        messages=[{"role": "user", "content": question}],
        max_tokens=48,
        extra_headers={"x-reprise-info": "on"},
        **sampling,
    )
    took_ms = (time.monotonic() - began_s) * 1e3
    print(f"{took_ms:7.0f} ms  {raw.headers['x-reprise-cache']:24}  {question}")
    print(f"            {raw.headers.get('x-reprise-info')}")


def main() -> None:
    """Ask four times."""
    with server(sys.argv[1], sys.argv[2:]) as url:
        client = openai.OpenAI(
            base_url=f"{url}/v1", api_key=os.environ.get("OPENAI_API_KEY", "EMPTY")
        )
        ask(client, "How do I cancel my order?", temperature=0)
        ask(client, "How do I cancel my order?", temperature=0)  # exact: the model is not asked
        time.sleep(2)  # until the first answer can be found
        ask(client, "I want to cancel my order, how?", temperature=0)  # drafted from the first
        ask(client, "How do I cancel my order?")  # sampled, as OpenAI's clients are by default


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main()
