"""Read the metrics as Prometheus does, and work out what was saved.

python examples/prometheus_scrape.py MODEL [vllm options]
python examples/prometheus_scrape.py http://localhost:8000

For Prometheus itself: a job with `metrics_path: /metrics` and the server as its target, and the
dashboard in docs/grafana.json.
"""

import os
import sys
import urllib.request

import openai
from prometheus_client.parser import text_string_to_metric_families
from server import server


def totals(url: str) -> dict[str, float]:
    """Return our metrics, summed over their labels."""
    sums: dict[str, float] = {}
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as reply:
        for family in text_string_to_metric_families(reply.read().decode()):
            for sample in family.samples:
                if sample.name.startswith("reprise:"):
                    kind = sample.labels.get("kind")
                    name = f"{sample.name}{{{kind}}}" if kind else sample.name
                    sums[name] = sums.get(name, 0.0) + sample.value
    return sums


def main() -> None:
    """Ask the same a few times, and scrape."""
    with server(sys.argv[1], sys.argv[2:]) as url:
        key = os.environ.get("OPENAI_API_KEY", "EMPTY")
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=key)
        for _ in range(4):
            client.completions.create(
                model=client.models.list().data[0].id, prompt="One two", temperature=0, max_tokens=9
            )
        found = totals(url)
        asked = sum(v for name, v in found.items() if name.startswith("reprise:requests_total"))
        exact = found.get("reprise:requests_total{exact}", 0.0)
        print(f"{exact:.0f} of {asked:.0f} requests were exact hits")
        print(f"{found['reprise:tokens_saved_total']:.0f} tokens were not generated")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main()
