"""Run as a process of its own: which model runner vLLM gives configs with our proposer, as JSON.

Standard input has one line: a list of cases, each with our settings and the environment.
"""

import json
import os
import sys
from typing import Any


def choice(settings: dict[str, Any], environment: dict[str, str], **arguments: Any) -> Any:
    """What vLLM makes of a case, or the error."""
    from vllm import EngineArgs

    from reprise.engine_ext.core.proposer_path import PROPOSER_PATH
    from reprise.engine_ext.scheduling.runner_choice import describe_choice
    from reprise.eval.demo_data.demo_model import demo_model_path

    os.environ.update(environment)
    try:
        config = EngineArgs(
            model=str(demo_model_path()),
            max_model_len=64,
            speculative_config={
                "model": PROPOSER_PATH,
                "num_speculative_tokens": 4,
            },
            additional_config={"reprise": settings},
            **arguments,
        ).create_engine_config()
        # What is asked of the config reads the environment again.
        return {
            "v2": config.use_v2_model_runner,
            "async": config.scheduler_config.async_scheduling,
            "method": config.speculative_config.method,
            "lengths": config.speculative_config.num_speculative_tokens_per_batch_size,
            "says": describe_choice(config),
        }
    except ValueError as error:
        return {"error": str(error)}
    finally:
        for name in environment:
            del os.environ[name]


def main() -> None:
    """Print one line with the list of what was chosen."""
    cases = json.loads(sys.stdin.readline())
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    print("REPLY " + json.dumps([choice(**case) for case in cases]))


if __name__ == "__main__":
    main()
