"""An engine within a program, with everything that a server has.

python examples/in_process.py MODEL
"""

import asyncio
import sys

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.sampling_params import RequestOutputKind, SamplingParams

from reprise import EnhancedAsyncLLM, RepriseConfig, create_enhanced_system


async def ask(engine: EnhancedAsyncLLM, prompt: str, request_id: str) -> None:
    """Generate, and print what came and how."""
    sampling = SamplingParams(
        temperature=0,
        max_tokens=32,
        output_kind=RequestOutputKind.FINAL_ONLY,
        extra_args={"reprise_info": "on"},
    )
    async for output in engine.generate(prompt, sampling, request_id):
        info = output.reprise_info
        print(f"{info.took_ms:7.0f} ms  {info.cache[0]:8}  {output.outputs[0].text!r}")


async def main() -> None:
    """Ask the same twice, and print what the engine says of itself."""
    arguments = AsyncEngineArgs(model=sys.argv[1], max_model_len=1024, enforce_eager=True)
    config = RepriseConfig.model_validate({"retrieval": {"near_answers": 8}})
    async with create_enhanced_system(arguments, config) as engine:
        await ask(engine, "How do I cancel my order?", "1")
        await ask(engine, "How do I cancel my order?", "2")
        print((await engine.health_check())["state"])
        print((await engine.get_stats())["front_end"]["counts"])


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    asyncio.run(main())
