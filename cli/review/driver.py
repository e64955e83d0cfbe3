"""Drive a review by a client, of a server or of a folder."""

from itertools import islice

from imagekin.client.sync_client import Client
from imagekin.errors import ImagekinError
from imagekin.index.review.review import Course, Found, NeighboursOf, NextItems, Options, Question
from imagekin.progress import progress


def run(client: Client, collection: str, options: Options) -> Found:
    """Review a collection and return what was found."""
    scrolled = client.scroll(collection)
    course = Course(options)
    step: Question | Found = course.question
    with progress("review", client.count(collection)) as advance:
        while not isinstance(step, Found):
            if isinstance(step, NextItems):
                items = [(item.key, item.label or "") for item in islice(scrolled, step.count)]
                step = course.answer(items)
                advance(len(items))
            elif isinstance(step, NeighboursOf):
                near = client.search(collection=collection, keys=step.keys, k=step.count, errors="return")
                step = course.answer([None if isinstance(one, ImagekinError) else one for one in near])
            else:
                pictures = client.thumbnails(collection, step.keys)
                step = course.answer([None if one is None else one.jpeg for one in pictures])
    return step
