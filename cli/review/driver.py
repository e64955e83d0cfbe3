"""Drive a review by a client, of a server or of a folder."""

from collections.abc import Iterator
from itertools import islice

import numpy as np

from imagekin.client.sync_client import Client
from imagekin.errors import ImagekinError
from imagekin.index.review.review import Course, Found, NeighboursOf, NextItems, Options, Question
from imagekin.progress import progress
from imagekin.types import StoredItem


def run(client: Client, collection: str, options: Options) -> Found:
    """Review a collection and return what was found."""
    scrolled: Iterator[StoredItem] = iter(())
    course = Course(options)
    step: Question | Found = course.question
    # All items are read twice: to learn from their labels, and to judge them.
    with progress("review", 2 * client.count(collection)) as advance:
        while not isinstance(step, Found):
            if isinstance(step, NextItems):
                if step.anew:
                    scrolled = client.scroll(collection, with_vector=True)
                items = list(islice(scrolled, step.count))
                step = course.answer(
                    [(item.key, item.label or "", np.asarray(item.vector, np.float32)) for item in items]
                )
                advance(len(items))
            elif isinstance(step, NeighboursOf):
                near = client.search(collection=collection, keys=step.keys, k=step.count, errors="return")
                step = course.answer([None if isinstance(one, ImagekinError) else one for one in near])
            else:
                pictures = client.thumbnails(collection, step.keys)
                step = course.answer([None if one is None else one.jpeg for one in pictures])
    return step
