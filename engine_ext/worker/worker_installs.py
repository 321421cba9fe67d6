"""In the worker: what makes steps with drafts cheap. vLLM does itself what cannot be installed."""

from collections.abc import Callable

from reprise.engine_ext.core.config import RepriseConfig
from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.engine_ext.worker.rank_agreement import all_ranks_can

_VERIFICATION = "install verification"


def install(config: RepriseConfig, errors: ErrorCounter) -> None:
    """Install all that can be, on every rank; what fails is counted in `errors`."""
    with errors.recording("install in worker"):
        _install(config, errors)
    # Each rank comes by here, whatever has failed: none verifies otherwise than the others.
    failed = errors.counts().keys() & {"install in worker", _VERIFICATION}
    if not all_ranks_can(not failed):
        with errors.recording("install in worker"):
            from reprise.engine_ext.worker import verification

            verification.deactivate()


def _install(config: RepriseConfig, errors: ErrorCounter) -> None:
    from reprise.engine_ext.compat import cpu_kernels, draft_metadata, full_graphs, sampling_repair
    from reprise.engine_ext.worker import verification

    installs: dict[str, Callable[[], object]] = {
        "prepare CPU kernels": lambda: cpu_kernels.prepare(
            batch_invariant=config.cpu_batch_invariant
        ),
        "repair sampling": sampling_repair.install,
        _VERIFICATION: lambda: verification.install(config.verification),
        "install draft metadata": draft_metadata.install,
        "install full graphs": full_graphs.install,
    }
    for name, install_one in installs.items():
        with errors.recording(name):
            install_one()
