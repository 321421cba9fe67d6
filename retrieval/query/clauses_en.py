"""English rules for clauses.

A sentence is cut at a connective if what follows begins to ask something ("and will I ...",
"but how ...") and what precedes asks something too, or if what follows is a second verb with an
object under the same opening ("How do I cancel my order and get a refund?").
"""

from __future__ import annotations

import re
from typing import Any

from reprise.retrieval.query.clause import Clause

_SENTENCE_ENDS = {".", "?", "!", ";", "\n", "...", "…"}
# They join two parts that ask only if the second begins as a question does: "whereas what ...".
_CONTRASTS = {"whereas", "although", "though", "yet", "however"}
_CONNECTIVES = {
    *("and", "or", "but", "plus", "&", "then", "also", "additionally", "besides", "well"),
    *_CONTRASTS,
}
# What a sentence may begin with before its main part, which begins after a comma.
_SUBORDINATORS = {
    *("although", "though", "even", "if", "since", "because", "while", "whereas", "unless", "as"),
    *("given", "when", "once", "after", "before", "until", "assuming", "supposing"),
}
_FILLERS = {
    *("also", "then", "please", "pls", "kindly", "and", "or", "but", "plus", "&", "so", "well"),
    *("hi", "hello", "hey", "dear", "thanks", "ok", "okay", ",", "-", ":", "first", "firstly"),
    *_CONTRASTS,
    *("second", "secondly", "finally", "lastly", "additionally", "besides", "if", "possible"),
    *(
        "as",
        "next",
        "afterwards",
        "furthermore",
        "moreover",
        "again",
        "actually",
        "just",
        '"',
        "team",
    ),
}
_QUESTION_WORDS = {"how", "what", "when", "where", "who", "whom", "whose", "why", "which"}
_AUXILIARIES = {
    *("do", "does", "did", "is", "are", "am", "was", "were", "can", "could", "will", "would"),
    *("should", "shall", "may", "might", "must", "have", "has", "had", "ca", "wo"),
}
_PRONOUNS = {"i", "you", "he", "she", "it", "we", "they", "there", "one", "someone", "anyone"}
_DETERMINERS = {
    *("the", "a", "an", "my", "your", "our", "their", "his", "her", "its", "this", "that"),
    *("these", "those", "any", "all", "some", "each", "every", "both", "no"),
}
_WISHES = {"want", "need", "would", "'d", "’d", "wish", "wanna", "must", "wonder", "'m", "am"}
_REQUESTS = {
    *("tell", "show", "explain", "describe", "help", "let", "send", "list", "compare", "advise"),
    *("give", "clarify", "confirm", "check", "provide", "teach", "remind", "assist", "suggest"),
    *("recommend", "summarize", "summarise", "translate", "write", "find", "name", "define"),
    *("cancel", "change", "update", "delete", "refund", "track", "reset", "activate", "close"),
    *("open", "remove", "return", "renew", "upgrade", "unsubscribe", "book", "forward"),
}
_VERBS = _REQUESTS | {
    *("get", "make", "add", "edit", "modify", "switch", "pay", "buy", "order", "purchase", "use"),
    *("create", "register", "recover", "restore", "download", "install", "upload", "share"),
    *("claim", "apply", "redeem", "transfer", "withdraw", "deposit", "receive", "obtain"),
    *("request", "contact", "reach", "speak", "talk", "call", "email", "report", "file", "submit"),
    *("verify", "set", "setup", "configure", "enable", "disable", "turn", "connect", "link"),
    *("unlink", "sync", "export", "import", "print", "scan", "save", "back", "move", "schedule"),
    *("reschedule", "postpone", "extend", "shorten", "replace", "repair", "fix", "clean", "wash"),
    *("measure", "calculate", "convert", "compute", "build", "run", "start", "stop", "pause"),
    *("resume", "end", "join", "leave", "invite", "block", "mute", "view", "see", "look", "read"),
    *("learn", "know", "understand", "choose", "pick", "select", "compare", "sell", "rent"),
    *("borrow", "lend", "ship", "deliver", "collect", "exchange", "swap", "test", "deploy"),
    *("debug", "sort", "filter", "merge", "split", "copy", "paste", "cook", "bake", "store"),
    *("freeze", "plant", "grow", "water", "train", "feed", "avoid", "prevent", "reduce"),
    *("increase", "improve", "lower", "raise", "lock", "unlock", "charge", "dispute", "sign"),
    *("log", "subscribe", "enter", "leave", "keep", "put", "take", "bring", "go", "travel"),
    *("hide", "mark", "archive", "attach", "confirm", "correct", "edit", "earn", "spend"),
    *("hire", "fire", "hand", "label", "pack", "unpack", "peel", "fold", "iron", "paint"),
    *("visit", "arrange", "plan", "organize", "organise", "prepare", "practice", "improve"),
}
_EMPTY_OBJECTS = (
    _PRONOUNS
    | _DETERMINERS
    | {
        *(
            "them",
            "me",
            "us",
            "him",
            "to",
            "of",
            "in",
            "on",
            "for",
            "with",
            "at",
            "by",
            "so",
            "too",
        ),
        *("again", "back", "up", "down", "out", "off", "and", "or", ",", "?", ".", "!", "please"),
        *("now", "then", "first", "later", "example", "examples"),
    }
)
_HANGING = {
    *("is that ok", "is that okay", "is that possible", "is this possible", "is it possible"),
    *("please help", "please help me", "can you help", "can you help me", "could you help me"),
    *("could you help", "help me please", "what should i do", "what do i do", "what can i do"),
    *("can you assist me", "could you assist me", "can you please help me", "how come", "why"),
    *("let me know", "please let me know", "why not", "what now", "how so", "is that right"),
    *("is that correct", "what is going on", "what happened", "do you know", "thank you"),
    *("how are you", "how are you doing", "how is it going", "how do you do", "what is up"),
    *("i need help", "i need assistance", "i need some help", "can i do that", "how"),
}


_OPENINGS = (
    ("how", "do|can|could|should|would|may|might", "i|we|you|one"),
    ("how", "to"),
    ("can|could|may|should|would|will|shall", "i|we|you"),
    ("do|did", "i|we|you", "need|have", "to"),
    ("i|we", "want|need|wish|wanna", "to"),
    ("i|we", "want|need|wish"),
    ("i|we", "would|'d|’d", "like", "to"),
    ("help", "me|us", "to"),
    ("help", "me|us"),
    ("want|need|like", "help|assistance", "to"),
    ("please",),
)


# What `_num_asking` reads: words and what sentences are cut at. A contraction is its beginning.
_CUTS = {*_SENTENCE_ENDS, ",", *_CONNECTIVES} - {"..."}
_PARTS = re.compile(r"\w+|[.?!;…\n,&]")
_JOINS_VERBS = {"and", "&", "plus", "then", "but"}
_ASKING_STARTS = {
    *(word + end for word in _QUESTION_WORDS for end in ("", "s", "d", "ll", "ve", "re")),
    *(word + end for word in _AUXILIARIES for end in ("", "n", "nt")),
    *("cannot", "shan", "shant", "ain", "aint", "whether", "not", "lets", *_REQUESTS),
}
_WISH_STARTS = {word.strip("'’") for word in _WISHES}
# A person's sentence is shorter; what stands before each connective of it is read again.
_MAX_SENTENCE_TOKENS = 200


class EnglishRules:
    """Clauses of English questions.

    Args:
        pipeline: A spaCy pipeline for English, blank or trained.
    """

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline

    def may_be_compound(self, text: str) -> bool:
        """Return, in some 10 us and without spaCy, whether `text` might have two clauses.

        Counts where a sentence, or what follows a comma or a connective in it, begins as something
        that asks does: `clauses` cuts nowhere else.
        """
        # A trained pipeline knows more verbs than the word list.
        return bool(self._pipeline.pipe_names) or _num_asking(_PARTS.findall(text.lower())) > 1

    def clauses(self, text: str) -> list[Clause]:
        """Find the asking parts of `text`, in order."""
        found: list[Clause] = []
        # spaCy would remember each word, an order's number too, for as long as the process lives.
        with self._pipeline.memory_zone():
            for sentence in _sentences(list(self._pipeline(text))):
                found.extend(_clauses_of(text, sentence))
        return found


def _num_asking(words: list[str]) -> int:
    """Count the places at which something that asks may begin, at least one for each "?"."""
    total = in_sentence = place = 0
    at_start, after_join = True, False
    for word, following in zip(words, [*words[1:], ""], strict=False):
        if word in _CUTS:
            at_start, after_join, place = True, after_join or word in _JOINS_VERBS, 0
            if word in _SENTENCE_ENDS:
                total += in_sentence or word == "?"
                in_sentence, after_join = 0, False
            continue
        place += 1
        in_sentence += word == "please" and place <= 3
        if at_start and word not in _FILLERS:
            in_sentence += (
                word in _ASKING_STARTS
                or (word in {"i", "we"} and following in _WISH_STARTS)
                or (after_join and (word in _VERBS or word.endswith("ing")))
            )
            at_start = after_join = False
    return total + in_sentence


def _sentences(tokens: list[Any]) -> list[list[Any]]:
    sentences: list[list[Any]] = [[]]
    for token in tokens:
        sentences[-1].append(token)
        if token.lower_ in _SENTENCE_ENDS or "\n" in token.text:
            sentences.append([])
    return [sentence for sentence in sentences if sentence]


def _clauses_of(text: str, sentence: list[Any]) -> list[Clause]:
    """Return the asking parts of one sentence."""
    parts: list[tuple[int, int, str]] = []  # token range, words shared with an earlier part
    begin, shared = 0, ""
    stop = len(sentence) - 1 if len(sentence) <= _MAX_SENTENCE_TOKENS else 1
    main = _main_part(sentence[: stop + 1])
    for at in range(main + 1, stop):
        if sentence[at].lower_ not in _CONNECTIVES | {","} or at <= begin:
            continue
        after = _skip_fillers(sentence, at)
        before = sentence[max(begin, main) : at]
        if not _asks(before, shared):
            continue
        if _begins_to_ask(sentence, after, before) and _may_join(sentence, at, after):
            parts.append((begin, at, shared))
            begin, shared = after, ""
        elif sentence[at].lower_ in _JOINS_VERBS:
            opening = shared or _opening(text, before)
            if opening and _second_verb(sentence, after, before, bool(shared)):
                parts.append((begin, at, shared))
                begin, shared = after, opening
    parts.append((begin, len(sentence), shared))
    clauses = []
    for start, stop, opening in parts:
        words = sentence[max(start, main) : stop]
        if _asks(words, opening) and not _hangs_on_another(words):
            # What the first part is said under, "although ...", belongs to it.
            if start >= main or not main:
                start = _skip_fillers(sentence, start, only_leading=True)
            clauses.append(Clause(sentence[start].idx, _end(sentence[stop - 1]), opening))
    return clauses


def _main_part(sentence: list[Any]) -> int:
    """Return where the main part of "Although it has expired, why is ..." begins: behind a comma,
    as something that asks; 0 in sentences without such a condition before."""
    first = next((at for at, token in enumerate(sentence) if token.lower_.isalpha()), 0)
    if _lower(sentence, first) not in _SUBORDINATORS:
        return 0
    for at in range(first + 1, len(sentence) - 1):
        if sentence[at].lower_ == ",":
            after = _skip_fillers(sentence, at)
            if _begins_to_ask(sentence, after, []):
                return after
    return 0


def _may_join(sentence: list[Any], at: int, after: int) -> bool:
    """Return whether a contrast begins as a question does: "although I want ..." is no second
    one."""
    words = {token.lower_ for token in sentence[at:after]}
    return not words & _CONTRASTS or _lower(sentence, after) in _QUESTION_WORDS | _AUXILIARIES


def _end(token: Any) -> int:
    return int(token.idx + len(token.text))


def _skip_fillers(sentence: list[Any], at: int, *, only_leading: bool = False) -> int:
    last = len(sentence) - 1
    while at < last and sentence[at].lower_ in _FILLERS:
        if sentence[at].lower_ == "please" and only_leading:
            break
        at += 1
    return at


def _lower(tokens: list[Any], at: int) -> str:
    return str(tokens[at].lower_) if 0 <= at < len(tokens) else ""


def _is_verb(token: Any) -> bool:
    """Judge by the pipeline if it knows parts of speech, by the word list if not."""
    if token.pos_:
        return bool(token.pos_ == "VERB")
    return token.lower_ in _VERBS


def _begins_to_ask(sentence: list[Any], at: int, before: list[Any]) -> bool:
    """Return whether something that asks by itself begins here."""
    word, following = _lower(sentence, at), _lower(sentence, at + 1)
    comma = bool(before) and at > 0 and _lower(sentence, at - 1) == ","
    if word in _QUESTION_WORDS:
        return _question_word_asks(word, following, before, comma=comma)
    if word in _AUXILIARIES:
        return following in _PRONOUNS | _DETERMINERS or (
            word not in {"do", "have", "had", "has", "may", "might"}
            and following.isalpha()
            and following not in _VERBS | _AUXILIARIES | {"be", "been", "not", "also", "only"}
            and not (comma and word in {"is", "are", "was", "were", "will", "can"})
        )
    if word in {"i", "we"}:
        return following in _WISHES
    if word == "whether":
        return True
    if word in {"tell", "explain", "show", "describe", "let"}:
        return following in _QUESTION_WORDS | {"me", "us"}
    return False


def _question_word_asks(word: str, following: str, before: list[Any], *, comma: bool) -> bool:
    if before and before[-1].lower_ in _QUESTION_WORDS | {"or", "and"}:
        return False  # "when and where can I ..."
    if word in {"which", "who", "whom", "whose"} and comma:
        return False  # a relative clause
    if word in {"when", "where", "why"} and following not in _AUXILIARIES:
        # "if it is lost and when it is damaged" asks nothing; "tell me ... and when it comes" does.
        asked_about = {token.lower_ for token in before}
        return not comma and not asked_about & {"if", "when"}
    return following != ""


def _asks(words: list[Any], shared: str) -> bool:
    """Return whether these words ask something."""
    if shared:
        return True
    at = _skip_fillers(words, 0) if words else 0
    word, following = _lower(words, at), _lower(words, at + 1)
    if word in {"when", "where"} and following not in _AUXILIARIES:
        return _lower(words, len(words) - 1) == "?" and not _main_question_follows(words, at)
    if word in _QUESTION_WORDS or word == "whether":
        return len(words) - at >= 3
    if word in _AUXILIARIES:
        return len(words) - at >= 3
    if word in {"i", "we"} and following in _WISHES:
        return True
    if word in _REQUESTS or (word == "not" and following == "sure"):
        return len(words) - at >= 2
    if any(w.lower_ == "please" for w in words[:3]):
        return len(words) >= 3
    return _lower(words, len(words) - 1) == "?" and len(words) >= 4


def _main_question_follows(words: list[Any], at: int) -> bool:
    """ "When I cancel, do I ..." asks in its second half; it is one question all the same."""
    return any(word.lower_ == "," for word in words[at:])


def _opening(text: str, before: list[Any]) -> str:
    """Return what a second verb would share: "How do I " of "How do I cancel my order"."""
    first = _skip_fillers(before, 0, only_leading=True)
    for start in range(first, min(first + 3, len(before))):
        for pattern in _OPENINGS:
            words = [_lower(before, start + i) for i in range(len(pattern))]
            if all(w in p.split("|") for w, p in zip(words, pattern, strict=True)):
                after = start + len(pattern)
                if after < len(before) and (
                    _is_verb(before[after]) or before[after].lower_.endswith("ing")
                ):
                    return text[before[first].idx : before[after].idx]
    return ""


def _second_verb(sentence: list[Any], at: int, before: list[Any], shared: bool) -> bool:
    """Return whether a verb with an object of its own begins here, and one precedes."""
    if not _is_verb(sentence[at]) and not sentence[at].lower_.endswith("ing"):
        return False
    mine = _objects(sentence[at + 1 :])
    if mine and mine[0].like_num:
        return False  # "order 123 and order 456"
    theirs = [i for i, token in enumerate(before) if _is_verb(token)]
    if not theirs and not shared:
        return False
    first = theirs[0] if theirs else 0
    return bool(mine) and bool(_objects(before[first + 1 :]))


def _objects(words: list[Any]) -> list[Any]:
    """Return words that say what a verb is about, up to where the next part may begin."""
    found = []
    for word in words:
        if word.lower_ in _CONNECTIVES | {","}:
            break
        if word.lower_ not in _EMPTY_OBJECTS and word.text[:1].isalnum():
            found.append(word)
    return found


def _hangs_on_another(words: list[Any]) -> bool:
    """Return whether this only asks with the help of another part: "is that possible?"."""
    kept = [word.lower_ for word in words if word.text[:1].isalnum() or word.text[:1] in "'’"]
    start = 0
    while start < len(kept) - 1 and kept[start] in _FILLERS - {"please"}:
        start += 1
    return " ".join(kept[start:]) in _HANGING
