"""Record how calls end: in the metrics, as spans and in the debug log."""

import contextlib
import logging
import time
from collections.abc import Iterator

from imagekin.errors import ImagekinError, UnauthenticatedError
from imagekin.serving.observability.metrics import CallOutcome, Metrics, Reason
from imagekin.serving.observability.tracing import Tracer
from imagekin.serving.transport.call_info import CallInfo, Context

_UNWATCHED = contextlib.nullcontext()
_EARLY_SECONDS = 0.05

log = logging.getLogger("imagekin.serving.calls")


class Watch:
    """Record calls, all but those for health and reflection.

    Args:
        metrics: records every call; None records nothing.
        tracer: sends spans; None sends nothing.
    """

    def __init__(self, metrics: Metrics | None, tracer: Tracer | None) -> None:
        self._metrics = metrics
        self._tracer = tracer

    def over(self, call: CallInfo, context: Context, *, streamed: bool) -> contextlib.AbstractContextManager[None]:
        """Record how a call ends that takes as long as a `with` block."""
        watched = self._metrics is not None or self._tracer is not None or log.isEnabledFor(logging.DEBUG)
        if not watched or call.method.startswith("/grpc."):
            return _UNWATCHED
        return self._over(call, context, streamed)

    def rejected(self, reason: Reason) -> None:
        """Count a call that there is no room for."""
        if self._metrics is not None:
            self._metrics.rejected(reason)

    def refused(self, call: CallInfo, error: ImagekinError) -> None:
        """Record a call that its token does not allow."""
        if self._metrics is not None:
            self.rejected("unauthenticated" if isinstance(error, UnauthenticatedError) else "permission_denied")
            self._metrics.ended(call.method, error.code, None)

    @contextlib.contextmanager
    def _over(self, call: CallInfo, context: Context, streamed: bool) -> Iterator[None]:
        # A client that gives up at its deadline may cancel a moment before the server's clock has reached it.
        outcome = CallOutcome(lambda: (left := context.time_remaining()) is not None and left <= _EARLY_SECONDS)
        try:
            with outcome:
                yield
        finally:
            seconds = time.monotonic() - call.began
            if self._metrics is not None:
                self._metrics.ended(call.method, outcome.code, None if streamed else seconds)
            if self._tracer is not None:
                self._tracer.ended(call.method, outcome.code, seconds, call.request_id, call.metadata)
            extra = {"request_id": call.request_id, "code": outcome.code, "seconds": round(seconds, 6)}
            log.debug("%s", call.method, extra=extra)
