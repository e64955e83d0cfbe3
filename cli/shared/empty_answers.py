"""Explain an answer in which nothing was found, so that nobody takes a mistake for a result."""

import difflib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imagekin.client.sync_client import Client
    from imagekin.index.filters.conditions import Comparison, Condition

_LABELS_SHOWN = 5


def why_nothing_was_found(
    client: "Client", collection: str, condition: str | None, min_similarity: float | None
) -> str:
    """Explain that no query of a search has a neighbour, and say what to do."""
    if not client.collection(collection).count:
        return f"{collection} is empty: `imagekin index {collection} SOURCE` puts images into it"
    if condition and not client.count(collection, filter=condition):
        hint = _hint(client, collection, condition)
        return f"no item of {collection} matches {condition}" + (f": {hint}" if hint else "")
    if min_similarity is not None:
        return f"no item is at least {min_similarity:g} similar: leave --min-similarity out to see the nearest ones"
    return "nothing was found"


def why_all_is_unknown(client: "Client", collection: str) -> str | None:
    """Explain that no image has a class; None where the collection has labels."""
    if client.collection(collection).labelled:
        return None
    return f"no item of {collection} has a label: index folders that are named after their classes"


def _hint(client: "Client", collection: str, condition: str) -> str:
    """Return a remark on a filter's labels, empty where nothing seems wrong with them."""
    from imagekin.index.filters.parser import parse

    asked = [value for one in _comparisons(parse(condition)) if one.field == "label" for value in one.values]
    numbers = [value for value in asked if not isinstance(value, str)]
    if numbers:
        return f'labels are texts: write "{str(numbers[0]).lower()}" with its quotation marks'
    if not asked:
        return ""
    labels = [str(one.value) for one in client.facet(collection, "label", limit=1_000)]
    for value in asked:
        if str(value) not in labels and (near := difflib.get_close_matches(str(value), labels, 1)):
            return f'there is no label "{value}"; did you mean "{near[0]}"?'
    more = ", …" if len(labels) > _LABELS_SHOWN else ""
    return f"its labels are {', '.join(labels[:_LABELS_SHOWN])}{more}" if labels else "its items have no labels"


def _comparisons(condition: "Condition") -> Iterator["Comparison"]:
    from imagekin.index.filters.conditions import Comparison, Not

    if isinstance(condition, Comparison):
        yield condition
    elif isinstance(condition, Not):
        yield from _comparisons(condition.part)
    else:
        for part in condition.parts:
            yield from _comparisons(part)
