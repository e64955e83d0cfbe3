"""Record how calls end: in the metrics, as spans and in the debug log."""

import contextlib
import logging
import time
from collections.abc import Iterator

from imagekin.errors import ImagekinError, UnauthenticatedError
from imagekin.serving.observability.audit import AuditLog
from imagekin.serving.observability.metrics import CallOutcome, Metrics, Reason
from imagekin.serving.observability.tracing import Tracer
from imagekin.serving.transport.call_info import CallInfo, Context
from imagekin.serving.transport.subjects import Subject

_UNWATCHED = contextlib.nullcontext()
_EARLY_SECONDS = 0.05
# Of the collection's name, which a caller that is refused may choose freely.
_MOST_LETTERS = 200

log = logging.getLogger("imagekin.serving.calls")


class Watch:
    """Record calls, all but those for health and reflection.

    Args:
        metrics: records every call; None records nothing.
        tracer: sends spans; None sends nothing.

    Attributes:
        audit: writes who asked for what; None writes nothing.
    """

    def __init__(self, metrics: Metrics | None, tracer: Tracer | None) -> None:
        self._metrics = metrics
        self._tracer = tracer
        self.audit: AuditLog | None = None

    def begin(self, call: CallInfo) -> CallInfo:
        """Return a call with a place for its subject if anybody wants to know it."""
        return call if self.audit is None else call._replace(subject=Subject())

    def over(self, call: CallInfo, context: Context, *, streamed: bool) -> contextlib.AbstractContextManager[None]:
        """Record how a call ends that takes as long as a `with` block."""
        watched = (
            self._metrics is not None
            or self._tracer is not None
            or self.audit is not None
            or log.isEnabledFor(logging.DEBUG)
        )
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
        if self.audit is not None:
            self.audit.note({"who": None, "method": call.method, "code": error.code, "request_id": call.request_id})

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
            if self.audit is not None:
                self._note(call, context.peer(), outcome.code, seconds)
            extra = {"request_id": call.request_id, "code": outcome.code, "seconds": round(seconds, 6)}
            log.debug("%s", call.method, extra=extra)

    def _note(self, call: CallInfo, peer: str, code: str, seconds: float) -> None:
        if self.audit is None:
            return
        subject = call.subject or Subject()
        self.audit.note(
            {
                "who": None if call.token is None else call.token.name,
                "from": peer,
                "method": call.method,
                "collection": subject.collection[:_MOST_LETTERS],
                "count": subject.count,
                "code": code,
                "seconds": round(seconds, 6),
                "request_id": call.request_id,
            }
        )
