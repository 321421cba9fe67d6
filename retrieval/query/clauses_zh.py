"""Chinese rules for clauses.

A text is cut at punctuation and at connectives; a piece is a clause if it asks something by
itself, and a piece that asks nothing belongs to the one after it. A second verb after 并 ("如何取消
订单并申请退款") shares the opening of the first.
"""

from __future__ import annotations

import re
from typing import Any

from reprise.retrieval.query.clause import Clause

_PUNCTUATION = set("，,；;。.？?！!\n")
_STOPS = set("。？?！!\n")
_CONTRASTS = ("但是", "不过", "可是", "然而")
_CONNECTIVES = (
    *("以及", "并且", "而且", "同时", "还有", "另外", "此外", "然后", "其次", "顺便", "和", "与"),
    *("或者", "还想", "也想", "再问", "且"),
    *_CONTRASTS,
)
_EXPLICIT = {"以及", "并且", "而且", "同时", "还有", "另外", "此外", "还想", "也想", "其次"}
_ASKING = re.compile(
    "如何|怎么|怎样|咋|什么|啥|哪(?!怕)|多[久少长大远重高快宽深厚]|几(?![乎何])|何时|为何|谁|是否|能否"
    r"|可否|(.)[不没]\1|吗|呢"
)
_BEGINS_ASKING = re.compile(
    # No word may also be read as two others: each reading more doubles the time.
    "(我|你们?|您|它|他们?|这|那|又|还|都|应|该|要|会|需要|可以|能|想知道|请问)*"
    "(如何|怎么|怎样|什么|哪|多[久少长大远重高快]|几|何时|为何|为什么|是否|能否|可否"
    r"|(?P<verb>.)[不没](?P=verb))"
)
_REQUEST = re.compile("^(请(?!问)|麻烦|帮我|帮忙|告诉我|教我|给我|介绍|解释|说明|列出|推荐|比较)")
_WISH = re.compile("^(我|还|也|又)*(想|要|需要|打算|希望)")
_SUBORDINATE = re.compile("(如果|要是|假如|当|若)|(的时候|之后|以后|后|时|的话|之前)$")
_POLITE = re.compile("^(请问(一下)?|你好|您好|那么?|嗨|哈喽|客服|亲|对了)+")
_HANGING = re.compile(
    "^(我们?|那|请问|现在|这样?|应?该|要|需要|可以|能|具体|又)*"
    "(怎么办|怎么做|怎么操作|如何操作|如何处理|怎么处理|怎么弄|怎么回事|可以吗|行吗|好吗|对吗|是吗|"
    "可以么|能行吗|为什么|吗|呢|怎么解决|如何解决|有什么办法|有办法吗|能帮我吗|能帮忙吗)[呢吗啊呀了]*$"
)
_ENDS_ASKING = re.compile("(如何|怎么|怎样|什么|哪里|哪儿|何时|何地|为什么|为何|谁)$")
_ENDS_OPEN = re.compile("(的时候|之后|以后|后|时|的话|之前)$")
_OPENING = re.compile(
    "(如何|怎么样?|怎样)(才能|去|能|可以)?(?=.)|我?(想要?|要|需要)(?=.)|(帮我|请帮我)"
)
_NOT_CONNECTIVE_BEFORE = set("合归吞兼火一")
_NOT_CONNECTIVE_AFTER = set("发行列非不没未购联")
_MIN_CHARACTERS = 3
# What a text may be cut at; at its end that cuts nothing.
_MAY_CUT = re.compile(
    "[，,；;。.？?！!\\n并且和与]|以及|同时|还有|另外|此外|然后|其次|顺便|或者|还想|也想|再问"
    "|但是|不过|可是|然而"
)
_CUT_OFF = "".join(_PUNCTUATION) + " "
# What stands left of each connective is read again: in longer pieces that would take too long.
_MAX_PIECE_CHARACTERS = 200


class ChineseRules:
    """Clauses of Chinese questions.

    Args:
        pipeline: A spaCy pipeline for Chinese; blank, it gives characters as tokens.
    """

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline

    def may_be_compound(self, text: str) -> bool:
        """Return in some 5 us whether there is anything inside `text` to cut it at."""
        return _MAY_CUT.search(text.rstrip(_CUT_OFF)) is not None

    def clauses(self, text: str) -> list[Clause]:
        """Find the asking parts of `text`, in order."""
        # Token edges, so that a trained pipeline's words are never cut in two.
        # spaCy would remember each, for as long as the process lives.
        with self._pipeline.memory_zone():
            edges = {token.idx for token in self._pipeline(text)} | {len(text)}
        found: list[Clause] = []
        for sentence_start, sentence_end in _pieces(text, 0, len(text), _STOPS):
            found.extend(_clauses_of(text, sentence_start, sentence_end, edges))
        return found


def _clauses_of(text: str, start: int, end: int, edges: set[int]) -> list[Clause]:
    """Return the asking parts of one sentence."""
    parts: list[Clause] = []
    context: Clause | None = None  # pieces so far that ask nothing by themselves
    for piece_start, piece_end in _pieces(text, start, end, _PUNCTUATION):
        linked = _leading_connective(text, piece_start, piece_end)
        cuts = _cut_at_connectives(text, piece_start + len(linked), piece_end, edges)
        for number, cut in enumerate(cuts):
            words = _POLITE.sub("", text[cut.start : cut.end].strip())
            hangs = _HANGING.match(words) is not None
            has_second_verb = number + 1 < len(cuts) and cuts[number + 1].shared
            if linked in _EXPLICIT and context is not None and _wishes(text, context):
                # "I want A, and also B": the wish stands by itself.
                parts.append(context)
                context = None
            if cut.shared or has_second_verb:
                parts.append(cut)
            elif _asks(words) and not (hangs and (parts or context)):
                parts.append(cut if context is None else Clause(context.start, cut.end))
                context = None
            elif linked in _EXPLICIT and parts and (_WISH.match(words) or linked[-1] == "想"):
                parts.append(cut)
            elif not hangs:
                context = Clause(cut.start if context is None else context.start, cut.end)
    return parts


def _wishes(text: str, clause: Clause) -> bool:
    return _WISH.match(_POLITE.sub("", clause.read(text).strip())) is not None


def _pieces(text: str, start: int, end: int, marks: set[str]) -> list[tuple[int, int]]:
    pieces, begin = [], start
    for at in range(start, end):
        if text[at] in marks:
            pieces.append((begin, at))
            begin = at + 1
    pieces.append((begin, end))
    return [(a, b) for a, b in pieces if text[a:b].strip()]


def _leading_connective(text: str, start: int, end: int) -> str:
    piece = text[start:end]
    return next((c for c in _CONNECTIVES if len(c) > 1 and piece.startswith(c)), "")


def _cut_at_connectives(text: str, start: int, end: int, edges: set[int]) -> list[Clause]:
    """Cut a piece where a connective joins two parts that ask, or two verbs."""
    cuts: list[Clause] = []
    begin, shared, at = start, "", start + 1
    while at < end - 1 and end - start <= _MAX_PIECE_CHARACTERS:
        connective = next((c for c in _CONNECTIVES if text.startswith(c, at)), "")
        after = at + len(connective)
        joins = connective and at in edges and (shared or _is_complete(text[begin:at]))
        contrasts = connective in _CONTRASTS and _asks(text[after:end])
        if joins and (contrasts or _BEGINS_ASKING.match(text, after, end)):
            cuts.append(Clause(begin, at, shared))
            begin, shared, at = after, "", after
            continue
        opening = _second_verb(text, begin, at, end, edges)
        if opening and not shared:
            cuts.append(Clause(begin, at))
            begin, shared = at + (2 if text[at + 1] == "且" else 1), opening
        at += 1
    cuts.append(Clause(begin, end, shared))
    return cuts


def _second_verb(text: str, begin: int, at: int, end: int, edges: set[int]) -> str:
    """Return the opening that the verb after 并 shares with the one before; empty if it is none."""
    if text[at] != "并" or at not in edges:
        return ""
    after = at + (2 if text[at + 1 : at + 2] == "且" else 1)
    if text[at - 1] in _NOT_CONNECTIVE_BEFORE or text[after : after + 1] in _NOT_CONNECTIVE_AFTER:
        return ""
    left = text[begin:at]
    opening = _OPENING.search(left)
    if opening is None or len(left) - opening.end() < _MIN_CHARACTERS:
        return ""
    if end - after < _MIN_CHARACTERS or _ASKING.search(text[after:end]):
        return ""
    return left[: opening.end()]


def _is_complete(left: str) -> bool:
    """Return whether this asks something that ends here: "怎样以及为什么" asks one thing."""
    left = _POLITE.sub("", left)
    return _asks(left) and not _ENDS_ASKING.search(left)


def _asks(words: str) -> bool:
    """Return whether a piece asks something by itself."""
    if len(words) < _MIN_CHARACTERS:
        return False
    if _REQUEST.match(words):
        return True
    asking = _ASKING.search(words)
    if asking is None:
        return False
    return not (_SUBORDINATE.search(words) and asking.end() < len(words) and _ends_open(words))


def _ends_open(words: str) -> bool:
    """Return whether the piece leaves its main statement to the next: "如果不知道怎么改的话"."""
    return _ENDS_OPEN.search(words) is not None
