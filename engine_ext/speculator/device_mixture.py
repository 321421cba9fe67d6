"""The mixture on the device: its state, and the weights that it predicts with and learns."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from reprise.engine_ext.core.config import RepriseConfig
from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.engine_ext.core.model_key import tokenizer_key_of
from reprise.engine_ext.speculator.mixture_learner import MixtureLearner, learning_provider
from reprise.engine_ext.worker.answer_learner import DraftsFromCorpora
from reprise.engine_ext.worker.weights_keeper import WeightsKeeper, weights_path
from reprise.kernels.draft.state import DraftState
from reprise.kernels.mixture.state import MixtureState

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class DeviceMixture:
    """What `draft_by_mixture` needs beside `DraftState`.

    The weights go on from those that were saved, here or on model runner V1, or else from those
    that are shipped.

    Args:
        state: on the device already, and of the sizes that are wanted.
        errors: counts what goes wrong.
    """

    def __init__(
        self,
        vllm_config: "VllmConfig",
        config: RepriseConfig,
        state: DraftState,
        *,
        errors: ErrorCounter,
    ) -> None:
        self._provider = learning_provider(
            max_near_answers=config.drafts.max_near_answers,
            max_corpus_bytes=config.drafts.max_corpus_bytes,
        )
        path = weights_path(config, tokenizer_key_of(vllm_config))
        self._keeper: WeightsKeeper | None = None
        if path is not None:
            self._keeper = WeightsKeeper(self._provider, path, errors=errors)
        self._provider.warm_up()
        weights = self._provider.weights()
        self.state = MixtureState.create(
            mixture_weights=weights.mixture,
            choice_weights=weights.choice,
            num_slots=state.num_slots,
            max_draft=state.max_draft,
            max_near_tokens=state.near_token_ids.shape[1],
            device=state.slots.device,
        )
        self.learner = MixtureLearner(self._provider, self.state, errors=errors)

    def salt(self, namespace: str) -> int:
        """32 bits for the hashes of a namespace's tokens, as on model runner V1."""
        return self._provider.salt(namespace)

    def flush(self, timeout_s: float) -> bool:
        """Wait until all requests so far are learned from, and saved; return whether they are."""
        is_learned = self.learner.flush(timeout_s)
        if self._keeper is not None:
            self._keeper.save()
        return is_learned


class BothCorpora:
    """Answers that the device drafts from, and that its weights are learned with."""

    def __init__(self, corpora: DraftsFromCorpora, learner: MixtureLearner) -> None:
        self._each: tuple[DraftsFromCorpora, DraftsFromCorpora] = (corpora, learner)

    def add_answer(
        self, answer_id: str, response_token_ids: NDArray[np.int32], *, namespace: str = ""
    ) -> None:
        """Index an answer of a namespace; one already indexed under this id stays as it is."""
        for each in self._each:
            each.add_answer(answer_id, response_token_ids, namespace=namespace)

    def remove_answer(self, answer_id: str, *, namespace: str = "") -> None:
        """Take an answer out of both, also if one of them fails; an unknown id is ignored."""
        corpora, learner = self._each
        try:
            learner.remove_answer(answer_id, namespace=namespace)
        finally:
            corpora.remove_answer(answer_id, namespace=namespace)
