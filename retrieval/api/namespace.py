"""The name of what isolates a tenant."""

from __future__ import annotations

MAX_NAMESPACE_LENGTH = 128
_FORBIDDEN = "@/\\\0"


def check_namespace(namespace: str) -> str:
    """Return `namespace` if it keeps vLLM's rule for cache salts.

    At most 128 characters, none of them `@`, `/`, `\\` or NUL, nor half of a pair (a surrogate),
    which no tier and no message to a worker could hold. The empty string is the namespace of
    requests that name none.

    Raises:
        ValueError: It does not.
    """
    if not isinstance(namespace, str):
        raise ValueError(f"namespace must be a string, got {type(namespace).__name__}")
    if len(namespace) > MAX_NAMESPACE_LENGTH:
        raise ValueError(
            f"namespace must have at most {MAX_NAMESPACE_LENGTH} characters, got {len(namespace)}"
        )
    if any(character in namespace for character in _FORBIDDEN):
        raise ValueError(f"namespace must not contain @, /, \\ or NUL, got {namespace!r}")
    if not is_encodable(namespace):
        raise ValueError(f"namespace must be text that UTF-8 can encode, got {namespace!r}")
    return namespace


def is_encodable(text: str) -> bool:
    """Return whether UTF-8 can encode a text: JSON and the command line bring some that it cannot,
    with half of a pair of surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
