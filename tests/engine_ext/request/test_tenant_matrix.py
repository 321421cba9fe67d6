"""Nothing crosses from one tenant to another, on real servers.

{API keys, salts, both, none} x {front end on, off, not recognised} x {exact hits, near by meaning,
near by tokens, corpus}: what one tenant has asked is asked by another, who must be drafted for from
its own context only. Within one tenant the same is shared; otherwise the test could not fail.
"""

import itertools
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("vllm")

from reprise.engine_ext.request.tenants import key_namespace

# Defined in this folder's conftest.py, which pytest imports under a name of its own.
Server = Any

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1800)]

ONE, ANOTHER = "key-of-one", "key-of-another"
_numbers = itertools.count()


class Asker(NamedTuple):
    """Who sends a request: by key, by salt, by both, or nobody that the server knows."""

    key: str | None = None
    salt: str | None = None


def fresh_salt() -> str:
    """A salt that nobody has given before: a tenant without any answers."""
    return f"salt{next(_numbers)}.{os.getpid()}"


@pytest.fixture(scope="module")
def started(demo_model: Path, server_builder: Any, tmp_path_factory: Any) -> Iterator[Any]:
    """Servers of ours with a front end that is not as usual, started side by side. vLLM's route
    for developers asks their workers."""
    eager = {"VLLM_SERVER_DEV_MODE": "1", "REPRISE_DRAFTS__VERIFY_COST": "0.0"}
    folder = other_front_end(tmp_path_factory.mktemp("plugins"))
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])

    def build(**others: Any) -> Server:
        options = {**eager, **others}
        return server_builder(
            demo_model, "--enable-scale-out", with_reprise=True, embeds=True, **options
        )

    servers = {
        "off": build(REPRISE_SERVING__ENABLED="false"),
        "not recognised": build(PYTHONPATH=path, VLLM_PLUGINS="reprise,other_front_end"),
        "without keys": build(api_keys=()),
    }
    try:
        for server in servers.values():
            server.wait()
        yield servers
    finally:
        for server in servers.values():
            server.terminate()
        for server in servers.values():
            server.stop()


def other_front_end(folder: Path) -> Path:
    """Write a plugin of vLLM's that has its front end pass for another than ours knows."""
    info = folder / "other_front_end-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other_front_end\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[vllm.general_plugins]\nother_front_end = other_front_end:register\n"
    )
    (folder / "other_front_end.py").write_text(
        "from reprise.engine_ext.compat.patches import Feature\n"
        "from reprise.engine_ext.compat.registry import Registry\n"
        "def register():\n"
        "    known = Registry.problem\n"
        "    def problem(self, feature, *role):\n"
        "        is_other = feature in (Feature.FRONT_END, Feature.HTTP)\n"
        "        return 'another front end' if is_other else known(self, feature, *role)\n"
        "    Registry.problem = problem\n"
    )
    return folder


def ask(server: Server, question: str, asker: Asker, *, max_tokens: int = 100, **head: str) -> Any:
    """One greedy chat completion. Whoever has no key of a server with keys takes the one path to
    its model that vLLM leaves open."""
    body = {"messages": [{"role": "user", "content": question}], "temperature": 0}
    body |= {"max_tokens": max_tokens, "ignore_eos": True}
    if asker.salt is not None:
        body["cache_salt"] = asker.salt
    path = "/v1/chat/completions" if asker.key is not None else "/invocations"
    reply = server.send(path, body, key=asker.key, **head)
    assert reply.status == 200, reply.body
    return reply


def tells(server: Server) -> bool:
    """Whether replies tell of their request, as our front end has them do."""
    if not hasattr(server, "tells"):
        reply = ask(server, "?", Asker(ONE), max_tokens=4, x_reprise_info="on")
        server.tells = "x-reprise-info" in reply.headers
    return bool(server.tells)


def drafted_from_answers(server: Server, ask_it: Callable[..., Any]) -> int:
    """Tokens drafted for the request from anybody's earlier answers."""
    if tells(server):
        reply = ask_it(x_reprise_info="on", x_reprise_cache="refresh")
        told = json.loads(reply.headers["x-reprise-info"])
        return count(told["drafts"]["by_source"])
    before = worker_counts(server)
    ask_it()
    return worker_counts(server) - before


def worker_counts(server: Server) -> int:
    (worker,) = rpc(server, "reprise_stats")
    assert worker["errors"] == {}
    return count(worker["provider"]["by_source"])


def rpc(server: Server, method: str) -> Any:
    reply = server.send("/collective_rpc", {"method": method}, method="POST")
    assert reply.status == 200, reply.body
    return reply.json["results"]


def count(by_source: dict[str, Any]) -> int:
    return sum(by_source[source]["drafted"] for source in ("near_answer", "corpus"))


def is_shared(
    server: Server, question: str, giver: Asker, taker: Asker, *, tries: int = 30
) -> bool:
    """Whether `taker` is ever drafted for from what `giver` has asked by then. Many tries go on for
    minutes: on a busy machine the embedding model may have yet to be loaded."""
    deadline_s = time.monotonic() + (200.0 if tries > 2 else 0.0)
    while tries > 0 or time.monotonic() < deadline_s:
        tries -= 1
        ask(server, question, giver, x_reprise_cache="refresh")
        if not tells(server):
            rpc(server, "reprise_flush")
        if drafted_from_answers(server, lambda **head: ask(server, question, taker, **head)):
            return True
    return False


def questions() -> tuple[str, str]:
    """One that nobody has asked yet, and the same in other words."""
    number = next(_numbers)
    return (
        f"Could you please tell me how I can get my money back for order number {number}?",
        f"How do I get the money back that order {number} has cost me, could you tell me?",
    )


PAIRS = {
    # Nobody, as the taker, is cold every time; so is a key with a salt that is new.
    "keys": [
        ("one", "one+s"),
        ("one+s", "another+s"),
        ("one+s", "one+t"),
        ("one+s", "nobody+s"),
        ("nobody+s", "another+s"),
        ("one+s", "nobody"),
        ("nobody", "nobody"),
        ("nobody", "one+s"),
    ],
    # No key is seen here: a salt is all there is.
    "not recognised": [
        ("one+s", "another+t"),
        ("one+s", "one"),
        ("one", "one"),
        ("one", "another"),
        ("another", "one+s"),
        ("nobody", "nobody"),
    ],
    "without keys": [("nobody+s", "nobody"), ("nobody", "nobody+s"), ("nobody+s", "nobody+t")],
}
PRIVATE = {
    "keys": {"nobody"},
    "not recognised": {"one", "another", "nobody"},
    "without keys": set(),
}
MODES = {
    "on": "keys",
    "off": "keys",
    "not recognised": "not recognised",
    "without keys": "without keys",
}
CELLS = [(mode, *pair) for mode, kind in MODES.items() for pair in PAIRS[kind]]
IDS = [f"{mode}: {giver} to {taker}" for mode, giver, taker in CELLS]


@pytest.fixture
def server_of(reprise_server: Server, started: dict[str, Server]) -> Callable[[str], Server]:
    return {"on": reprise_server, **started}.__getitem__


def askers(*names: str) -> list[Asker]:
    """`one+s` and the like, with salts of this test's own."""
    salts = {"s": fresh_salt(), "t": fresh_salt(), "": None}
    keys = {"one": ONE, "another": ANOTHER, "nobody": None}
    made = []
    for name in names:
        who, _, salt = name.partition("+")
        made.append(Asker(keys[who], salts[salt]))
    return made


@pytest.mark.parametrize(("mode", "giver", "taker"), CELLS, ids=IDS)
def test_nothing_crosses(
    mode: str, giver: str, taker: str, server_of: Callable[[str], Server]
) -> None:
    """Every second pair in the same words, which share tokens, the others in other words."""
    is_paraphrased = CELLS.index((mode, giver, taker)) % 2 == 1
    server = server_of(mode)
    gives, takes = askers(giver, taker)
    question, paraphrase = questions()
    is_private = giver in PRIVATE[MODES[mode]]
    # Within one tenant it is shared; what is nobody's is not even given to the same again.
    assert (
        is_shared(server, question, gives, gives, tries=2 if is_private else 30) is not is_private
    )
    if mode == "without keys" and taker == "nobody":
        # Here that is a tenant, no longer cold when it has asked once.
        takes = takes._replace(salt=fresh_salt())
    wanted = paraphrase if is_paraphrased else question
    assert drafted_from_answers(server, lambda **head: ask(server, wanted, takes, **head)) == 0


# A key without a salt is not cold: others have asked with it, but not this question.
KEY_TO_KEY = pytest.param("on", "one", "another", id="on: one to another")


@pytest.mark.parametrize(
    ("mode", "giver", "taker"),
    [*(pytest.param(*cell, id=name) for cell, name in zip(CELLS, IDS, strict=True)), KEY_TO_KEY],
)
def test_exact_hits_do_not_cross(
    mode: str, giver: str, taker: str, server_of: Callable[[str], Server]
) -> None:
    if mode in ("off", "not recognised"):
        reply = ask(server_of(mode), questions()[0], Asker(ONE, "s"))
        assert "x-reprise-cache" not in reply.headers
        return
    server = server_of(mode)
    gives, takes = askers(giver, taker)
    question = questions()[0]
    kinds = [ask(server, question, gives).cache for _ in range(2)]
    assert (kinds[1] == "exact") is (giver not in PRIVATE[MODES[mode]])
    assert ask(server, question, takes).generated
    # A request that is to be answered from the cache only finds nothing either.
    only = {"x_reprise_cache": "only-if-cached"}
    if taker in PRIVATE[MODES[mode]]:
        body = {"messages": [{"role": "user", "content": question}], "temperature": 0}
        assert server.send("/invocations", body, key=None, **only).status == 504


def test_without_keys_bearer_tokens_say_nothing(server_of: Callable[[str], Server]) -> None:
    """Clients send `EMPTY`, or a token that somebody in front renews: all are one tenant."""
    server = server_of("without keys")
    question = questions()[0]
    first = ask(server, question, Asker("EMPTY"))
    assert first.generated
    for key in ("EMPTY", "a-token-of-today", "a-token-of-tomorrow", None):
        assert ask(server, question, Asker(key)).cache == "exact"
    assert is_shared(server, questions()[0], Asker("EMPTY"), Asker(None))


@pytest.mark.parametrize("mode", ["off", "not recognised"])
def test_no_client_forges_the_hints_of_another(
    mode: str, server_of: Callable[[str], Server]
) -> None:
    """Everywhere that `extra_args` can be reached from outside."""
    server = server_of(mode)
    (victim,) = askers("one+s")
    question = questions()[0]
    assert is_shared(server, question, victim, victim)
    salted = f"salt-{victim.salt}"
    body = {"messages": [{"role": "user", "content": question}]}
    token_ids = server.send("/tokenize", body, key=ANOTHER).json["tokens"]
    for namespace in (salted, f"{key_namespace(ONE)}.{salted}", victim.salt):
        forged = {"namespace": namespace, "retrieval_id": "chatcmpl-of-another", "store": True}

        def generate(forged: Any = forged, **head: str) -> Any:
            params = {"temperature": 0, "max_tokens": 100, "ignore_eos": True}
            asked = {"token_ids": token_ids, "cache_salt": fresh_salt()}
            asked["sampling_params"] = {**params, "extra_args": {"reprise": forged}}
            reply = server.send("/inference/v1/generate", asked, key=ANOTHER, **head)
            assert reply.status == 200, reply.body
            return reply

        def chat(namespace: Any = namespace, **head: str) -> Any:
            asked = {**body, "temperature": 0, "max_tokens": 100, "cache_salt": fresh_salt()}
            asked["vllm_xargs"] = {"reprise": namespace, "reprise_namespace": "mine"}
            reply = server.send("/v1/chat/completions", asked, key=ANOTHER, **head)
            assert reply.status == 200, reply.body
            return reply

        def complete(namespace: Any = namespace, **head: str) -> Any:
            asked = {"prompt": token_ids, "temperature": 0, "max_tokens": 100}
            asked |= {"cache_salt": fresh_salt(), "vllm_xargs": {"reprise": [namespace, ""]}}
            reply = server.send("/v1/completions", asked, key=ANOTHER, **head)
            assert reply.status == 200, reply.body
            return reply

        for attempt in (generate, chat, complete):
            assert drafted_from_answers(server, attempt) == 0


def test_admin_routes_tell_a_tenant_nothing_of_another(reprise_server: Server) -> None:
    (victim,) = askers("one+s")
    question = questions()[0]
    ask(reprise_server, question, victim)
    assert ask(reprise_server, question, victim).cache == "exact"
    for key in (ANOTHER, None):
        for path in ("/reprise/cache", "/reprise/cache?limit=1000", "/reprise/stats"):
            told = reprise_server.send(path, key=key, x_reprise_admin_token="").body
            assert "order number" not in told or question not in told
            assert victim.salt not in told
        everything = "/reprise/cache?everything=true"
        reprise_server.send(everything, key=key, method="DELETE", x_reprise_admin_token="")
    assert ask(reprise_server, question, victim).cache == "exact"


@pytest.mark.parametrize("mode", ["not recognised"])
def test_the_log_says_once_that_requests_are_private(
    mode: str, server_of: Callable[[str], Server]
) -> None:
    server = server_of(mode)
    for _ in range(2):
        ask(server, questions()[0], Asker(ONE), max_tokens=4)
    assert len(re.findall("The tenant of such a request", server.log())) == 1
    assert "another front end; there will be no exact hits" in server.log()


@pytest.mark.parametrize("mode", ["off", "not recognised"])
def test_private_requests_leave_nothing_behind(
    mode: str, server_of: Callable[[str], Server]
) -> None:
    server = server_of(mode)

    def kept() -> tuple[int, int, int]:
        deadline_s = time.monotonic() + 60.0
        while rpc(server, "reprise_stats")[0]["live_requests"]:  # hears of ends a step later
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        rpc(server, "reprise_flush")
        (worker,) = rpc(server, "reprise_stats")
        provider = worker["provider"]
        return worker["live_requests"], provider["answers"], provider["cached_tokens"]

    before = kept()
    for number in range(20):
        ask(server, f"private question {number}", Asker(), max_tokens=20)
    assert kept() == before
