"""Facts about the call that is being handled, kept in a context variable so that outgoing calls can pass them on."""

import re
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import Context, ContextVar
from dataclasses import dataclass, field

import grpc

REQUEST_ID = "x-request-id"
TENANT = "x-tenant"
PROVIDER_DATA = "x-provider-data"
TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
_TRACEPARENT = re.compile(r"^[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})$")


@dataclass(slots=True, kw_only=True)
class Trace:
    """W3C trace context: the trace that the call belongs to and the span that is current."""

    trace_id: str
    """32 hex digits, the same over all hops."""
    span_id: str
    """16 hex digits of the current span, the parent of outgoing calls."""
    parent_id: str = ""
    """16 hex digits of the caller's span; empty where the trace begins."""
    flags: str = "01"
    """Two hex digits; the last bit asks to record."""
    state: str = ""
    """The vendors' `tracestate`, passed on unchanged."""

    @property
    def traceparent(self) -> str:
        """The header for outgoing calls."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}"

    @classmethod
    def from_headers(cls, *, traceparent: str, tracestate: str) -> "Trace":
        """Continue the caller's trace with a new span, or begin one when the header is missing or damaged."""
        match = _TRACEPARENT.match(traceparent)
        if match is None or not int(match[1], 16) or not int(match[2], 16) or traceparent.startswith("ff"):
            return cls(trace_id=secrets.token_hex(16), span_id=secrets.token_hex(8))
        return cls(
            trace_id=match[1], span_id=secrets.token_hex(8), parent_id=match[2], flags=match[3], state=tracestate
        )


@dataclass(slots=True, kw_only=True)
class Call:
    """One incoming call while it is handled."""

    method: str
    """Full name, `/package.Service/Method`."""
    request_id: str = ""
    """The caller's id of the request, or one made here."""
    tenant: str = ""
    """For whom the call is made; empty where nobody said so. See `interceptors.tenant`."""
    provider_data: str = field(default="", repr=False)
    """Keys of providers that the caller brings, a JSON object; empty where there are none. Never logged or stored. See
    `interceptors.tenant`."""
    trace: Trace = field(default_factory=lambda: Trace.from_headers(traceparent="", tracestate=""))
    """The trace it belongs to."""
    deadline: float | None = None
    """When the answer is due, on the clock of `time.monotonic`; None means never."""
    code: grpc.StatusCode = grpc.StatusCode.OK
    """How it ended."""
    reason: str = ""
    """The ErrorInfo reason when it failed."""
    messages: int = 0
    """Responses sent."""
    started: float = field(default_factory=time.monotonic)
    """When it arrived, on the clock of `time.monotonic`."""
    facts: dict[str, str | int | float | bool] = field(default_factory=dict)
    """What its handler wants its span to say, by attribute; see `note`."""

    def remaining(self) -> float | None:
        """Seconds until the deadline, never below 0; None without one."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())


_current: ContextVar[Call | None] = ContextVar("llamastack_call", default=None)


def current_call() -> Call | None:
    """The call being handled in this task, or None outside of one."""
    return _current.get()


def current_tenant() -> str:
    """For whom the current call is made; empty where nobody said so, and outside of calls."""
    call = _current.get()
    return call.tenant if call else ""


def current_provider_data() -> str:
    """Keys of providers that came with the current call, a JSON object; empty where there are none."""
    call = _current.get()
    return call.provider_data if call else ""


def note(**facts: str | float | bool) -> None:
    """Let the span of the current call say more; `model__id=...` is the attribute `model.id`. Never texts of users."""
    call = _current.get()
    if call is not None:
        for name, value in facts.items():
            call.facts[name.replace("__", ".")] = value


def enter_call(method: str) -> Call:
    """The call of this task, made when this is its first mention; each call is handled in a task of its own."""
    call = _current.get()
    if call is None or call.method != method:
        call = Call(method=method)
        _current.set(call)
    return call


def detached(*, tenant: str | None = None) -> Context:
    """The context for work that outlives the current call: what it hands down, but not its deadline.

    Args:
        tenant: For whom the work is done, where a call that is over asked for it; None: as the current call says.
    """
    call, context = _current.get(), Context()
    if tenant is not None:
        context.run(_current.set, Call(method="", tenant=tenant))
    elif call is not None:
        kept = Call(
            method=call.method,
            request_id=call.request_id,
            tenant=call.tenant,
            provider_data=call.provider_data,
            trace=call.trace,
        )
        context.run(_current.set, kept)
    return context


@contextmanager
def work_of(name: str, facts: Mapping[str, str | float | bool]) -> Iterator[Call]:
    """A span of its own for work beside calls: a child of what the task belongs to, or a trace's first.

    Args:
        name: Of the span.
        facts: As `note` takes them.
    """
    around = _current.get()
    trace = Trace.from_headers(traceparent="", tracestate="")
    call = Call(method=f"/{name}", trace=trace)
    if around is not None:
        call.tenant, call.request_id = around.tenant, around.request_id
        call.provider_data = around.provider_data
        if around.method:  # else nobody knows any more which call asked for it
            trace.trace_id, trace.parent_id = around.trace.trace_id, around.trace.span_id
            trace.flags, trace.state = around.trace.flags, around.trace.state
    call.facts.update({name.replace("__", "."): value for name, value in facts.items()})
    token = _current.set(call)
    try:
        yield call
    finally:
        _current.reset(token)
