"""Generates once for identical determined requests that are in flight at the same time.

The first such request leads: the engine generates for it. The others follow: they are given the
engine's outputs as they come, each through its own `RequestState`. If the leader is aborted, the
engine goes on for the followers under the leader's id; it is stopped when the last one is gone.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from vllm.v1.engine import EngineCoreOutput, FinishReason

from reprise.engine_ext.compat.patches import Feature
from reprise.engine_ext.compat.registry import registry
from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.engine_ext.outputs.flight import FinishedFlight, Flight, FlightWatcher
from reprise.engine_ext.outputs.late_followers import LateFollowers
from reprise.engine_ext.outputs.loop_turns import TOKENS_AT_ONCE
from reprise.engine_ext.outputs.one_token_outputs import latest_output
from reprise.engine_ext.outputs.replay import Ending, Feeder, Replayer

if TYPE_CHECKING:
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.engine.output_processor import (
        OutputProcessor,
        OutputProcessorOutput,
        RequestOutputCollector,
        RequestState,
    )
    from vllm.v1.metrics.stats import IterationStats

# How an answer may end that the settings determine; an abort or an error is none.
_WHOLE = frozenset({FinishReason.STOP, FinishReason.LENGTH, FinishReason.REPETITION})


class SingleFlight:
    """Stands between the engine's outputs and vLLM's output processor. Event loop only."""

    def __init__(
        self, processor: "OutputProcessor", replayer: Replayer, *, errors: ErrorCounter
    ) -> None:
        """Take the place of `process_outputs` and `abort_requests` on this one processor."""
        self._processor = processor
        self._replayer = replayer
        self._errors = errors
        self._feeder = Feeder(processor)
        own = registry.apply_to(processor, Feature.SINGLE_FLIGHT, self)
        self._process_outputs = own["process_outputs"]
        self._abort_requests = own["abort_requests"]
        self._num_unfinished_requests = own["get_num_unfinished_requests"]
        self._num_queued_tokens = own["get_num_queued_tokens"]
        self._by_request: dict[str, Flight] = {}
        self._by_key: dict[bytes, Flight] = {}
        self._by_follower: dict[str, Flight] = {}
        self._late = LateFollowers(processor, replayer.turns)
        self.weight_version: str | None = None
        """The label of the weights behind the latest output; None before the first."""

    def __len__(self) -> int:
        return len(self._by_request)

    def lead(
        self,
        key: bytes | None,
        request_id: str,
        *,
        watcher: FlightWatcher,
        priority: int = 0,
    ) -> None:
        """Record what the engine emits for `request_id`, which is about to be admitted.

        Args:
            key: what makes two requests the same; None: only record it, no other may follow.
            request_id: the engine's id of the request.
            watcher: notified of its progress.
            priority: of the request, as vLLM counts it: the lowest number comes first.
        """
        flight = Flight(key, request_id, watcher=watcher, priority=priority)
        self._by_request[request_id] = flight
        if key is not None:
            self._by_key.setdefault(key, flight)

    def cancel(self, request_id: str, error: Exception) -> None:
        """Fail the flight of a leader that was not admitted: its followers get `error`."""
        flight = self._by_request.pop(request_id, None)
        if flight is not None:
            for state in self._forget(flight):
                self._fail(state, error)

    def join(
        self,
        key: bytes,
        request: "EngineCoreRequest",
        prompt: str | None,
        queue: "RequestOutputCollector",
    ) -> bool:
        """Follow the flight under `key`.

        Returns:
            False: there is none, or it is of lower priority or cannot be followed; nothing has
            changed.
        """
        flight = self._by_key.get(key)
        # A request must not wait for one of lower priority.
        if flight is None or request.priority < flight.priority:
            return False
        request_id = request.request_id
        so_far = flight.token_ids[:TOKENS_AT_ONCE]
        flight.follower_ids[request_id] = None
        try:
            self._processor.add_request(request, prompt, None, 0, queue)
            self._feeder.begin(request)
            if so_far:
                self._feed(flight, request_id, so_far, None)
        except Exception as error:
            self._errors.record("single_flight", error)
            flight.follower_ids.pop(request_id, None)
            self._replayer.withdraw(request_id, queue)
            return False
        flight.num_followers += 1
        self._by_follower[request_id] = flight
        if len(so_far) < len(flight.token_ids):
            feed = partial(self._pass_on_late, flight, request_id)
            self._late.begin(request_id, flight.token_ids, len(so_far), feed)
        return True

    def is_led(self, key: bytes) -> bool:
        """Return whether there is a flight under a key."""
        return key in self._by_key

    def watcher_of(self, request_id: str) -> FlightWatcher | None:
        """Return who is notified of a request's progress; None: it leads no flight."""
        flight = self._by_request.get(request_id)
        return None if flight is None else flight.watcher

    def leave(self, request_id: str) -> None:
        """Remove a follower: its request is answered in another way."""
        followed = self._by_follower.pop(request_id, None)
        if followed is not None:
            followed.follower_ids.pop(request_id, None)

    def process_outputs(
        self,
        engine_core_outputs: list[EngineCoreOutput],
        engine_core_timestamp: float | None = None,
        iteration_stats: "IterationStats | None" = None,
        weight_version: str | None = None,
    ) -> "OutputProcessorOutput":
        """Call vLLM's `process_outputs`, and pass the same outputs to the followers."""
        if weight_version is not None:
            self.weight_version = weight_version
        if not self._by_request:
            return self._process_outputs(
                engine_core_outputs, engine_core_timestamp, iteration_stats, weight_version
            )
        try:
            recorded = [
                # The lists are copied: vLLM cuts them at a stop string, each request its own.
                (flight, output, list(output.new_token_ids), self._states_of(flight))
                for output in engine_core_outputs
                if (flight := self._by_request.get(output.request_id)) is not None
            ]
        except Exception as error:
            self._errors.record("single_flight", error)
            recorded = []
            for output in engine_core_outputs:
                self.cancel(output.request_id, error)
        result = self._process_outputs(
            engine_core_outputs, engine_core_timestamp, iteration_stats, weight_version
        )
        for flight, output, token_ids, states in recorded:
            try:
                self._advance(flight, output, token_ids, states, result)
            except Exception as error:
                self._give_up(flight, output, result, error)
        return result

    def get_num_unfinished_requests(self) -> int:
        """Return how many requests the engine has or may be given, such as those that wait for the
        tier: of those answered without it, vLLM's limit for what waits would refuse others."""
        number = int(self._num_unfinished_requests())
        with self._errors.recording("single_flight"):
            number -= len(self._without_engine())
        return number

    def get_num_queued_tokens(self) -> int:
        """Return how many tokens the prompts have of those requests that have no output yet."""
        number = int(self._num_queued_tokens())
        with self._errors.recording("single_flight"):
            waiting = [each.prompt_len for each in self._without_engine() if each.is_prefilling]
            number -= int(sum(waiting))
        return number

    def _without_engine(self) -> "list[RequestState]":
        """Return the states of requests that the engine has nothing to do for."""
        ids = {*self._replayer.live_ids, *self._late.ids}
        for flight in self._by_request.values():
            ids.update(flight.follower_ids)
            if flight.leader_is_gone and flight.follower_ids and flight.ending is None:
                ids.discard(next(iter(flight.follower_ids)))  # the engine goes on for this one
        states: dict[str, RequestState] = self._processor.request_states
        return [states[id_] for id_ in ids if id_ in states]

    def _give_up(
        self,
        flight: Flight,
        output: EngineCoreOutput,
        result: "OutputProcessorOutput",
        error: Exception,
    ) -> None:
        """End a flight that has failed here: its leader goes on, as without it."""
        self._errors.record("single_flight", error)
        self._by_request.pop(flight.request_id, None)
        try:
            for state in self._forget(flight):
                self._fail(state, error)
        except Exception as another:
            self._errors.record("single_flight", another)
        if flight.leader_is_gone and not output.finished:
            result.reqs_to_abort.append(flight.request_id)

    def abort_requests(self, request_ids: Iterable[str], internal: bool) -> list[str]:
        """Call vLLM's `abort_requests`; return only what the engine has to stop."""
        to_stop: list[str] = []
        for request_id in self._abort_requests(request_ids, internal):
            try:
                to_stop += self._stops_with(request_id)
            except Exception as error:
                # The engine ignores an id that it does not know.
                self._errors.record("single_flight", error)
                to_stop.append(request_id)
        return to_stop

    def _stops_with(self, request_id: str) -> list[str]:
        """Return what the engine has to stop when this request is aborted."""
        if self._replayer.forget(request_id):
            return []
        led = self._by_request.get(request_id)
        followed = self._by_follower.pop(request_id, None)
        if led is not None:
            led.leader_is_gone = True
            if led.follower_ids:
                return []
            self._close(led)
        elif followed is not None:
            followed.follower_ids.pop(request_id, None)
            if not followed.leader_is_gone or followed.follower_ids:
                return []
            self._close(followed)
            return [followed.request_id]
        return [request_id]

    def _advance(
        self,
        flight: Flight,
        output: EngineCoreOutput,
        token_ids: list[int],
        states: list["RequestState"],
        result: "OutputProcessorOutput",
    ) -> None:
        """Pass one step's tokens to the followers; close the flight if it ended there."""
        # From vLLM 0.33 on: the engine refused the leader on arrival, as when it is paused.
        refused = getattr(output, "error", None)
        if refused is not None:
            self._by_request.pop(flight.request_id, None)
            for state in self._forget(flight):
                # Each client raises its own exception.
                self._fail(state, refused.to_exception())
            return
        if not flight.token_ids:
            flight.prefill_stats = output.prefill_stats
            self._notify(flight.watcher.on_first_token)
        flight.token_ids += token_ids
        ending = None
        if output.finish_reason is not None:
            ending = flight.ending = Ending(output.finish_reason, output.stop_reason)
        for follower_id in list(flight.follower_ids):
            if follower_id not in self._late:
                self._pass_on(flight, follower_id, token_ids, ending)
        # A follower that has failed here is none of the flight any more, and while the leader goes
        # on only the engine can end it.
        members = [
            state
            for state in states
            if state.request_id == flight.request_id or state.request_id in flight.follower_ids
        ]
        finished = next(
            (state for state in members if not self._processor.has_request(state.request_id)), None
        )
        if ending is None and self._processor.has_request(flight.request_id):
            return
        has_no_client = flight.leader_is_gone and not flight.follower_ids
        if finished is None and ending is None and not has_no_client:
            return
        if finished is None and any(id_ in self._late for id_ in flight.follower_ids):
            return  # the first of them that has the whole answer closes it
        if finished is not None:
            self._report(flight, finished)
        self._close(flight)
        if ending is None and output.request_id not in result.reqs_to_abort:
            # A follower's detokenizer found a stop string, which the aborted leader could not; or
            # no client is left.
            result.reqs_to_abort.append(flight.request_id)
        for follower_id in flight.follower_ids:
            if follower_id not in self._late:
                self._fail_left_behind(follower_id)

    def _report(self, flight: Flight, state: "RequestState") -> None:
        assert state.queue is not None
        outcome = latest_output(state.queue)
        if outcome is None or isinstance(outcome, Exception) or not outcome.finished:
            return
        completion = outcome.outputs[0]
        reasons = {str(reason): reason for reason in _WHOLE}
        reason = reasons.get(completion.finish_reason or "")
        if reason is None or state.detokenizer is None:
            return
        finished = FinishedFlight(
            token_ids=list(state.detokenizer.output_token_ids),
            text=getattr(state.detokenizer, "output_text", ""),
            ending=Ending(reason, completion.stop_reason),
            num_followers=flight.num_followers,
        )
        self._notify(flight.watcher.on_finish, finished)

    def _pass_on(
        self, flight: Flight, follower_id: str, token_ids: Sequence[int], ending: Ending | None
    ) -> None:
        state = self._processor.request_states.get(follower_id)
        if state is None:
            return
        try:
            self._feed(flight, follower_id, token_ids, ending)
        except Exception as error:
            self._errors.record("single_flight", error)
            flight.follower_ids.pop(follower_id, None)
            self._by_follower.pop(follower_id, None)
            self._fail(state, error)

    def _pass_on_late(
        self, flight: Flight, follower_id: str, token_ids: Sequence[int], is_last: bool
    ) -> None:
        """Pass to a follower what was generated before; with the last it is where the flight is."""
        state = self._processor.request_states[follower_id]
        self._pass_on(flight, follower_id, token_ids, flight.ending if is_last else None)
        if not self._processor.has_request(follower_id):
            if flight.ending is not None and self._by_request.get(flight.request_id) is flight:
                if state.queue is not None:  # otherwise it has failed
                    with self._errors.recording("single_flight"):
                        self._report(flight, state)
                self._close(flight)
            # A stop string ended it. Without its leader the flight goes on only for the others.
            flight.follower_ids.pop(follower_id, None)
            self._by_follower.pop(follower_id, None)
        elif is_last and self._by_request.get(flight.request_id) is not flight:
            self._fail_left_behind(follower_id)

    def _fail_left_behind(self, follower_id: str) -> None:
        state = self._processor.request_states.get(follower_id)
        self._fail(state, RuntimeError("the generation that it followed has ended"))

    def _feed(
        self, flight: Flight, follower_id: str, token_ids: Sequence[int], ending: Ending | None
    ) -> None:
        state = self._processor.request_states[follower_id]
        self._feeder.feed(
            follower_id,
            token_ids,
            ending=ending,
            prefill_stats=flight.prefill_stats if state.is_prefilling else None,
            weight_version=self.weight_version,
        )

    def _fail(self, state: "RequestState | None", error: Exception) -> None:
        if state is not None and self._processor.has_request(state.request_id):
            self._replayer.fail(state, error)

    def _states_of(self, flight: Flight) -> list["RequestState"]:
        ids = (flight.request_id, *flight.follower_ids)
        states: dict[str, Any] = self._processor.request_states
        return [states[id_] for id_ in ids if id_ in states]

    def _close(self, flight: Flight) -> None:
        if self._by_request.pop(flight.request_id, None) is not None:
            self._forget(flight)

    def _forget(self, flight: Flight) -> list["RequestState | None"]:
        """Drop a flight that is no longer among those in flight; return its followers' states."""
        if flight.key is not None and self._by_key.get(flight.key) is flight:
            del self._by_key[flight.key]
        for follower_id in flight.follower_ids:
            self._by_follower.pop(follower_id, None)
        self._notify(flight.watcher.on_end)
        states: dict[str, Any] = self._processor.request_states
        return [states.get(follower_id) for follower_id in flight.follower_ids]

    def _notify(self, call: Callable[..., None], *args: Any) -> None:
        try:
            call(*args)
        except Exception as error:
            self._errors.record("flight_watcher", error)
