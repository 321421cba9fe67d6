"""The demo trace: a support desk's requests, made from a seed out of templates.

Warm rows are wordings of every topic. Timed rows are wordings of the same topics that the warm
rows do not hold, compound questions that join two topics, and asides with nothing to reuse. Names,
order numbers, amounts and dates are drawn anew for each row, so that an old answer seldom fits as
it stands.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from reprise.eval.demo_data.demo_asides import ASIDES, Aside
from reprise.eval.demo_data.demo_topics import SHARED, TOPICS, Topic
from reprise.eval.replay.traces import TraceRow

WORDINGS_PER_TOPIC = 12
WARM_WORDINGS_PER_TOPIC = 9
COMPOUND_ROWS = 44


class Tone(NamedTuple):
    """How a customer speaks, and how the desk opens and closes its answer to that."""

    frames: tuple[str, ...]
    compound_frames: tuple[str, ...]
    opener: str
    closing: str


TONES: tuple[Tone, ...] = (
    Tone(
        (
            "Could you please help me {x}?",
            "I would be grateful if you could help me {x}.",
            "Please tell me how to {x}.",
            "Hello, may I ask how to {x}?",
            "Would you kindly explain how to {x}?",
        ),
        (
            "Could you please help me {x}, and also {y}?",
            "Please tell me how to {x} and how to {y}.",
        ),
        "Thank you for your friendly message{name}. It is a pleasure to help you with this.",
        "Is there anything else that I may do for you? I wish you a lovely day.",
    ),
    Tone(
        (
            "How do I {x}?",
            "I need to {x}.",
            "I want to {x}, what are the steps?",
            "What must I do to {x}?",
            "Is there a way to {x}?",
        ),
        (
            "How do I {x}, and how do I {y}?",
            "I need to {x}. Then I want to {y}.",
        ),
        "Hello{name}, here is what to do.",
        "If a step does not work as described, reply to this message and we look at it together.",
    ),
    Tone(
        (
            "I have tried for days to {x} and nothing works!",
            "This is annoying, I still cannot {x}.",
            "Why is it so hard to {x}?",
            "I am fed up, I just want to {x}.",
            "It is a disgrace that nobody helps me {x}!",
        ),
        (
            "I am fed up, I just want to {x} and to {y}!",
            "Why is it so hard to {x}? And nobody helps me {y} either!",
        ),
        "I am truly sorry for the trouble{name}, and I understand that you are upset.",
        "I will keep an eye on your case myself and write to you as soon as there is news.",
    ),
    Tone(
        (
            "Quick question: how can I {x}?",
            "In a rush here, help me {x}.",
            "No time to search, I have to {x} today.",
            "Short on time, need to {x} now.",
        ),
        (
            "Quick question: how can I {x} and {y}?",
            "In a rush here, help me {x}, then {y}.",
        ),
        "Sure{name}, in short:",
        "That is all, it takes less than five minutes.",
    ),
)

ASIDE_FRAMES: tuple[str, ...] = (
    "Something else entirely: tell me about {x}.",
    "Before I go, I am curious about {x}.",
    "What can you say on the subject of {x}?",
    "A colleague and I were talking about {x}, what do you know?",
    "By the way, do you know anything about {x}?",
    "Off topic, I would like to learn about {x}.",
    "{x}, please.",
    "One more thing, and it is not about an order: {x}.",
    "My son is asking me about {x}.",
    "Tell my daughter something about {x}.",
    "I would love to hear about {x}.",
    "My daughter wants to hear about {x}.",
)

# fmt: off
_NAMES = (
    "Ada", "Amir", "Anna", "Ben", "Carla", "Chen", "Clara", "Daan", "Elena", "Emma",
    "Farid", "Felix", "Grace", "Hana", "Hugo", "Ines", "Ivan", "Jonas", "Julia", "Karim",
    "Lara", "Leo", "Lina", "Luis", "Maja", "Marco", "Maya", "Mia", "Nadia", "Nils",
    "Nora", "Omar", "Oscar", "Paula", "Pedro", "Rosa", "Sami", "Sara", "Sofia", "Tariq",
    "Theo", "Vera", "Viktor", "Wei", "Yara", "Yusuf", "Zoe", "Zora",
)
# fmt: on
_MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)


class Wording(NamedTuple):
    """One way to put a topic: a tone, one of its frames, one of the topic's phrases."""

    tone: int
    frame: int
    phrase: int


def make_demo_trace(seed: int = 0) -> list[TraceRow]:
    """The whole demo trace: warm rows first, then the timed rows, mixed. Same seed, same rows."""
    rng = random.Random(f"demo trace rows {seed}")
    warm: list[TraceRow] = []
    timed: list[TraceRow] = []
    for topic in TOPICS:
        wordings = _trace_wordings(topic, seed)
        rows = [support_row(rng, topic, wording) for wording in wordings]
        warm += rows[:WARM_WORDINGS_PER_TOPIC]
        timed += rows[WARM_WORDINGS_PER_TOPIC:]
    timed += [_compound_row(rng, *pair) for pair in _trace_pairs(seed)]
    timed += [_aside_row(aside, ASIDE_FRAMES[-1]) for aside in ASIDES]
    rng.shuffle(warm)
    rng.shuffle(timed)
    return [
        msgspec.structs.replace(row, id=f"demo-{number}", warm=number < len(warm))
        for number, row in enumerate(warm + timed)
    ]


def training_rows(seed: int = 0) -> Iterator[TraceRow]:
    """An endless stream of rows like those of `make_demo_trace(seed)`, with slots of their own.

    The timed wordings of a topic, the timed pairs of topics and the frame in which the trace asks
    about asides do not occur in it: the demo model has to find its own answers to the timed rows.
    """
    rng = random.Random(f"demo training rows {seed}")
    pairs_held_out = {frozenset(pair) for pair in _trace_pairs(seed)}
    wordings = {
        topic: sorted(
            set(all_wordings()) - set(_trace_wordings(topic, seed)[WARM_WORDINGS_PER_TOPIC:])
        )
        for topic in TOPICS
    }
    while True:
        draw = rng.random()
        if draw < 0.30:
            yield _aside_row(rng.choice(ASIDES), rng.choice(ASIDE_FRAMES[:-1]))
        elif draw < 0.52:
            first, second = rng.sample(TOPICS, 2)
            if frozenset((first, second)) not in pairs_held_out:
                yield _compound_row(rng, first, second)
        else:
            topic = rng.choice(TOPICS)
            yield support_row(rng, topic, rng.choice(wordings[topic]))


def all_wordings() -> list[Wording]:
    """Return every way to put a topic."""
    return [
        Wording(tone, frame, phrase)
        for tone, frames in enumerate(TONES)
        for frame in range(len(frames.frames))
        for phrase in range(3)
    ]


def _trace_wordings(topic: Topic, seed: int) -> list[Wording]:
    """The topic's wordings in the trace: the warm ones, then the timed ones."""
    rng = random.Random(f"demo wordings {seed} {topic.name}")
    return rng.sample(all_wordings(), WORDINGS_PER_TOPIC)


def _trace_pairs(seed: int) -> list[tuple[Topic, Topic]]:
    """The pairs of topics that the trace's compound questions join."""
    rng = random.Random(f"demo pairs {seed}")
    firsts = rng.sample(TOPICS, COMPOUND_ROWS)
    return [(first, rng.choice([t for t in TOPICS if t != first])) for first in firsts]


def support_row(rng: random.Random, topic: Topic, wording: Wording) -> TraceRow:
    """Return a question about one topic, its slots and the customer's name drawn anew."""
    tone = TONES[wording.tone]
    prompt, name = _signed(rng, tone.frames[wording.frame])
    slots = _draw_slots(rng)
    prompt = prompt.replace("{x}", topic.phrases[wording.phrase].format(**slots))
    return TraceRow(
        prompt=prompt,
        response=" ".join(
            (
                tone.opener.format(name=name),
                topic.body.format(**slots),
                SHARED[topic.category],
                tone.closing,
            )
        ),
        group=topic.name,
    )


def _compound_row(rng: random.Random, first: Topic, second: Topic) -> TraceRow:
    tone = rng.choice(TONES)
    prompt, name = _signed(rng, rng.choice(tone.compound_frames))
    bodies = []
    for place, topic in (("{x}", first), ("{y}", second)):
        slots = _draw_slots(rng)
        prompt = prompt.replace(place, rng.choice(topic.phrases).format(**slots))
        bodies.append(topic.body.format(**slots))
    return TraceRow(
        prompt=prompt,
        response=" ".join(
            (
                tone.opener.format(name=name),
                bodies[0],
                "As for your second question:",
                bodies[1],
                tone.closing,
            )
        ),
        group=f"{first.name}+{second.name}",
    )


def _aside_row(aside: Aside, frame: str) -> TraceRow:
    return TraceRow(
        prompt=frame.replace("{x}", aside.subject), response=aside.answer, group="aside"
    )


def _signed(rng: random.Random, frame: str) -> tuple[str, str]:
    """The frame, signed by a customer or not, and how the answer then addresses them."""
    if rng.random() < 0.4:
        return frame, ""
    name = rng.choice(_NAMES)
    return f"{frame} My name is {name}.", f", {name}"


def _draw_slots(rng: random.Random) -> dict[str, str]:
    return {
        "order": f"{rng.choice('ABCDEFGH')}-{rng.randrange(10**3, 10**4)}",
        "amount": f"${rng.randrange(5, 400)}.{rng.randrange(100):02d}",
        "date": f"{rng.randrange(1, 29)} {rng.choice(_MONTHS)}",
    }
