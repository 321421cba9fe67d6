"""Bring the history of another server: a chat log becomes answers to draft from.

python examples/preload_from_logs.py chats.jsonl MODEL [vllm options]
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import openai
from server import server

QUESTION = "How can I cancel an order?"


def main() -> None:
    """Import the log, look for a question in it, and ask a server that starts with it."""
    log, model, *options = sys.argv[1:]
    reprise = str(Path(sys.executable).with_name("reprise"))
    with tempfile.TemporaryDirectory() as folder:
        tier = f"sqlite://{folder}/answers.sqlite"
        cache = [reprise, "cache"]
        subprocess.run([*cache, "import", log, "--model", model, "--url", tier], check=True)
        # Embedded now, so that the server finds them as soon as it is ready.
        subprocess.run([*cache, "warm", "--url", tier], check=True)
        subprocess.run([*cache, "search", QUESTION, "--url", tier, "--limit", "3"], check=True)
        with server(model, options, REPRISE_RETRIEVAL__URL=tier) as url:
            client = openai.OpenAI(base_url=f"{url}/v1", api_key="EMPTY")
            raw = client.chat.completions.with_raw_response.create(
                model=client.models.list().data[0].id,
                messages=[{"role": "user", "content": QUESTION}],
                max_tokens=48,
                temperature=0,
            )
            print(f"{raw.headers['x-reprise-cache']:10}  {QUESTION}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main()
