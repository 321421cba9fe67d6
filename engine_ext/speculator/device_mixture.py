"""The mixture on the device: its state, and the weights that it predicts with."""

from typing import TYPE_CHECKING

from vllm.logger import init_logger

from reprise.engine_ext.core.config import RepriseConfig
from reprise.engine_ext.core.model_key import tokenizer_key_of
from reprise.engine_ext.worker.weights_keeper import weights_path
from reprise.kernels.draft.state import DraftState
from reprise.kernels.mixture.state import MixtureState
from reprise.retrieval.host.private_files import check_ours
from reprise.spec.predictor.weights import LearnedWeights, salt_of

if TYPE_CHECKING:
    from vllm.config import VllmConfig

logger = init_logger(__name__)


class DeviceMixture:
    """What `draft_by_mixture` needs beside `DraftState`.

    The weights are those that model runner V1 has learned and saved, or else those that are
    shipped; nothing is learned here.

    Args:
        state: on the device already, and of the sizes that are wanted.
    """

    def __init__(self, vllm_config: "VllmConfig", config: RepriseConfig, state: DraftState) -> None:
        weights = _weights(vllm_config, config)
        self._secret = weights.secret
        self.state = MixtureState.create(
            mixture_weights=weights.tables.mixture,
            choice_weights=weights.tables.choice,
            num_slots=state.num_slots,
            max_draft=state.max_draft,
            max_near_tokens=state.near_token_ids.shape[1],
            device=state.slots.device,
        )

    def salt(self, namespace: str) -> int:
        """32 bits for the hashes of a namespace's tokens, as on model runner V1."""
        return salt_of(namespace, self._secret)


def _weights(vllm_config: "VllmConfig", config: RepriseConfig) -> LearnedWeights:
    weights = LearnedWeights()
    path = weights_path(config, tokenizer_key_of(vllm_config))
    if path is None:
        return weights
    try:
        check_ours(path)
        weights.load(path)
    except FileNotFoundError:
        pass
    except Exception as error:  # V1's next save replaces it
        logger.warning("Reprise: drafting begins with the shipped weights: %s", error)
    return weights
