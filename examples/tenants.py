"""Tenants by API key: what one has asked, no other is answered from, or told of.

python examples/tenants.py MODEL [vllm options]
python examples/tenants.py http://localhost:8000     # with its keys in KEYS, by commas
"""

import os
import sys

import openai
from server import server

KEYS = os.environ.get("KEYS", "key-of-anna,key-of-ben").split(",")


def ask(url: str, key: str, question: str) -> None:
    """Ask with an API key, and print how the cache took it."""
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=key)
    raw = client.chat.completions.with_raw_response.create(
        model=client.models.list().data[0].id,
        messages=[{"role": "user", "content": question}],
        max_tokens=24,
        temperature=0,
    )
    print(f"{key:12}  {raw.headers['x-reprise-cache']:10}  {question}")


def checks_keys(url: str) -> bool:
    """Whether the server refuses a key that it does not know: else all who ask are one tenant."""
    try:
        openai.OpenAI(base_url=f"{url}/v1", api_key="no-key-of-anybody").models.list()
    except openai.AuthenticationError:
        return True
    return False


def main() -> None:
    """Let two tenants ask the same."""
    with server(sys.argv[1], [*sys.argv[2:], "--api-key", *KEYS]) as url:
        if not checks_keys(url):
            sys.exit(f"{url} checks no API keys, and so tells no tenants apart")
        for key in (KEYS[0], KEYS[0], KEYS[1], KEYS[1]):
            ask(url, key, "What did I order last week?")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main()
