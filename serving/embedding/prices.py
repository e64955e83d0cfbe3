"""What an image costs to decode and to infer, as measured, and whether that is worth handing it to a thread.

To hand a request to a thread and its answer back takes some 120 µs of processor time, most of it in switches between
threads that wait for the interpreter's lock. A model that takes less is better run where the request is.
"""

import math

# About what handing over costs, and the answer waits for it besides.
_WORTH_A_THREAD_SECONDS = 1.5e-4
# The event loop is held up for no longer at a time, as far as can be foreseen.
_MOST_SECONDS = 1e-3
_LEARNING = 0.125


class Price:
    """Seconds that one image takes; not known at first. Any thread may note more: a note that is lost does no harm."""

    def __init__(self) -> None:
        self.seconds = math.inf

    def note(self, seconds: float, images: int = 1) -> None:
        """Note how long so many images took together: one takes no longer than all of them, and no less than a share.

        What is shorter than ever counts at once, because whoever is interrupted measures too much, and nobody too
        little; what is longer counts little by little.
        """
        share = seconds / images
        if seconds < self.seconds:
            self.seconds = seconds
        elif share > self.seconds:
            self.seconds += _LEARNING * (share - self.seconds)


class Prices:
    """What a pipeline's images have cost.

    Attributes:
        decoding: of an image file.
        inference: of an image.
    """

    def __init__(self) -> None:
        self.decoding = Price()
        self.inference = Price()

    def are_low(self, images: int, files: int) -> bool:
        """Return whether so many images, of which some are files, are done sooner than handed over."""
        one, all_of_them = self.inference.seconds, images * self.inference.seconds
        if files:
            one, all_of_them = one + self.decoding.seconds, all_of_them + files * self.decoding.seconds
        return one <= _WORTH_A_THREAD_SECONDS and all_of_them <= _MOST_SECONDS
