"""What an answer turns out to be, piece by piece."""

from dataclasses import dataclass

from services.llama.messages import ToolCall


@dataclass(frozen=True)
class Text:
    """Text that is no call, final."""

    text: str


@dataclass(frozen=True)
class CallStarted:
    """What follows looks like a call, or a list of them."""


@dataclass(frozen=True)
class CallPiece:
    """The next piece of the raw text of what was started, from its first character on."""

    text: str


@dataclass(frozen=True)
class CallFailed:
    """What was started is no call: its raw text follows as `Text`."""


@dataclass(frozen=True)
class CallComplete:
    """A call; those of one list come together."""

    call: ToolCall


Event = Text | CallStarted | CallPiece | CallFailed | CallComplete
