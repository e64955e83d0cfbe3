"""Validate the keys, labels and payloads of images.

Every function returns the value in the form in which it is stored, or raises InvalidArgumentError in one line.
"""

import json
import re
from collections.abc import Sequence

from imagekin.errors import InvalidArgumentError
from imagekin.types import Payload

MAX_KEY_BYTES = 1024
MAX_LABEL_BYTES = 1024
MAX_PAYLOAD_BYTES = 64 * 1024
_MAX_PAYLOAD_DEPTH = 64

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def key(value: str) -> str:
    """Return `value` if it is a valid key: 1 to 1,024 bytes of UTF-8 without control characters."""
    size = text_bytes(value, "key")
    if not 1 <= size <= MAX_KEY_BYTES:
        raise InvalidArgumentError(f"a key has 1 to {MAX_KEY_BYTES} bytes, this one has {size}", field="key")
    return value


def keys(values: Sequence[str]) -> list[str]:
    """Check keys, and return them without repetitions, in their order."""
    return list(dict.fromkeys(key(value) for value in values))


def label(value: str | None) -> str | None:
    """Return a label of at most 1,024 bytes of UTF-8 without control characters; None for an empty one."""
    if not value:
        return None
    size = text_bytes(value, "label")
    if size > MAX_LABEL_BYTES:
        raise InvalidArgumentError(f"a label has at most {MAX_LABEL_BYTES} bytes, this one has {size}", field="label")
    return value


def payload_text(value: Payload | None) -> str | None:
    """Return a payload as JSON text of at most 64 KiB; None for an empty one."""
    if not value:
        return None
    if not isinstance(value, dict):
        value = dict(value)
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        size = len(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"the payload is not a JSON object: {_reason(error)}", field="payload") from None
    if size > MAX_PAYLOAD_BYTES:
        raise InvalidArgumentError(
            f"a payload has at most {MAX_PAYLOAD_BYTES} bytes as JSON, this one has {size}", field="payload"
        )
    if text.count("{") + text.count("[") > _MAX_PAYLOAD_DEPTH and _depth(value) > _MAX_PAYLOAD_DEPTH:
        raise InvalidArgumentError(f"a payload is nested at most {_MAX_PAYLOAD_DEPTH} deep", field="payload")
    return text


def text_bytes(text: str, field: str) -> int:
    """Return the number of UTF-8 bytes of a text, which must be valid Unicode without control characters."""
    if not isinstance(text, str):
        raise InvalidArgumentError(f"a {field} is text, this one is of type {type(text).__name__}", field=field)
    if _CONTROL.search(text):
        raise InvalidArgumentError(f"a {field} has no control characters, this one does: {text[:80]!r}", field=field)
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise InvalidArgumentError(
            f"a {field} is valid Unicode, this one holds a lone surrogate: {text[:80]!r}", field=field
        ) from None


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply or holds itself"
    if isinstance(error, UnicodeEncodeError):
        return "it holds a lone surrogate"
    return str(error).splitlines()[0][:200]


def _depth(value: object) -> int:
    deepest, open_nodes = 0, [(value, 1)]
    while open_nodes:
        node, level = open_nodes.pop()
        children: list[object] = []
        if isinstance(node, dict):
            children = list(node.values())
        elif isinstance(node, (list, tuple)):
            children = list(node)
        else:
            continue
        deepest = max(deepest, level)
        open_nodes.extend((child, level + 1) for child in children)
    return deepest
