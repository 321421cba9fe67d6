"""An output processor with replays and followers on it, its clients, and vLLM's to compare with."""

from typing import Any

from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector

from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.engine_ext.outputs.flight import FinishedFlight
from reprise.engine_ext.outputs.replay import Replayer
from reprise.engine_ext.outputs.single_flight import SingleFlight
from reprise.tests.engine_ext.front_ends import core_request

EOS = 0
KINDS = list(RequestOutputKind)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, so that a letter outside ASCII takes several; id 0 ends the text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<eos>": EOS} | {symbol: index + 1 for index, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


TOKENIZER = byte_tokenizer()


class Desk:
    """An output processor with everything of ours on it, and the requests handed to it."""

    def __init__(self, *, log_stats: bool = True) -> None:
        self.processor = OutputProcessor(TOKENIZER, log_stats=log_stats)
        self.errors = ErrorCounter()
        self.replayer = Replayer(self.processor, chunk_tokens=3, errors=self.errors)
        self.flights = SingleFlight(self.processor, self.replayer, errors=self.errors)
        self.finished: list[FinishedFlight] = []
        self.begun = self.ended = 0

    def on_first_token(self) -> None:
        self.begun += 1

    def on_finish(self, finished: FinishedFlight) -> None:
        assert self.ended == 0
        self.finished.append(finished)

    def on_end(self) -> None:
        self.ended += 1

    def lead(self, request: EngineCoreRequest, queue: RequestOutputCollector) -> None:
        self.flights.lead(b"k", request.request_id, watcher=self)
        self.processor.add_request(request, "p", None, 0, queue)

    def emit(
        self, request_id: str, token_ids: list[int], reason: FinishReason | None = None
    ) -> list[str]:
        output = EngineCoreOutput(
            request_id=request_id, new_token_ids=list(token_ids), finish_reason=reason
        )
        return self.processor.process_outputs([output], 1.0, None, "w").reqs_to_abort


def make(
    name: str, kind: RequestOutputKind, **params: Any
) -> tuple[EngineCoreRequest, RequestOutputCollector]:
    settings_ = {"temperature": 0, "max_tokens": 500, **params}
    request = core_request(
        name,
        SamplingParams(output_kind=kind, **settings_),
        prompt=TOKENIZER.encode("question"),
        external_req_id=f"external-{name}",
    )
    return request, RequestOutputCollector(kind, name)


class Reader:
    """What a client makes of a request's outputs, by the kind it asked for."""

    def __init__(self, kind: RequestOutputKind, queue: RequestOutputCollector) -> None:
        self._kind = kind
        self._queue = queue
        self.text = ""
        self.token_ids: list[int] = []
        self.end: tuple[str | None, Any] | None = None
        self.pieces = 0

    def take(self) -> None:
        output = self._queue.get_nowait()
        if output is None:
            return
        self.pieces += 1
        completion = output.outputs[0]
        is_delta = self._kind is RequestOutputKind.DELTA
        self.text = self.text + completion.text if is_delta else completion.text
        new = list(completion.token_ids)
        self.token_ids = self.token_ids + new if is_delta else new
        if output.finished:
            self.end = (completion.finish_reason, completion.stop_reason)

    @property
    def result(self) -> tuple[str, list[int], Any]:
        return self.text, self.token_ids, self.end


TEXTS = st.text(alphabet="abé€ \n😀", min_size=1, max_size=24)
STOPS = st.lists(st.sampled_from(["ab", "b", "é", "\n ", "ba", "😀a"]), max_size=2, unique=True)


@st.composite
def generations(draw: st.DrawFn) -> tuple[list[list[int]], FinishReason]:
    """Steps of one to four tokens, and how the engine ends."""
    token_ids = TOKENIZER.encode(draw(TEXTS))
    reason = draw(st.sampled_from([FinishReason.STOP, FinishReason.LENGTH]))
    if reason is FinishReason.STOP:
        token_ids.append(EOS)
    steps = []
    while token_ids:
        size = draw(st.integers(1, 4))
        steps.append(token_ids[:size])
        token_ids = token_ids[size:]
    return steps, reason


def reference(
    steps: list[list[int]], reason: FinishReason, kind: RequestOutputKind, params: dict[str, Any]
) -> tuple[str, list[int], Any]:
    """vLLM alone, with the same steps."""
    processor = OutputProcessor(TOKENIZER, log_stats=False)
    request, queue = make("reference", kind, **params)
    processor.add_request(request, "p", None, 0, queue)
    reader = Reader(kind, queue)
    for index, step in enumerate(steps):
        output = EngineCoreOutput(
            request_id="reference",
            new_token_ids=list(step),
            finish_reason=reason if index == len(steps) - 1 else None,
        )
        processor.process_outputs([output])
        reader.take()
    return reader.result


def late() -> tuple[EngineCoreRequest, str, RequestOutputCollector]:
    request, queue = make("late", RequestOutputKind.DELTA)
    return request, "p", queue


def fail(*_args: Any, **_kwargs: Any) -> None:
    raise RuntimeError("broken")
