"""The output of a response while it is made: its items and the numbered events that tell of them."""

from dataclasses import dataclass, field

from llamastack import v1
from services.agents.responses.items import derived_id

Event = v1.WatchResponseResponse


@dataclass(kw_only=True)
class Output:
    """Items and events of one response.

    Attributes:
        response: As it stands.
        void: Places of items that a step which began anew did not stand by.
    """

    response: v1.ResponseObject
    void: set[int] = field(default_factory=set)
    _made: list[Event] = field(default_factory=list)

    def take(self) -> list[Event]:
        """The events since the last call."""
        made, self._made = self._made, []
        return made

    def emit(self, **event: object) -> None:
        """Make an event."""
        self.response.last_sequence += 1
        self._made.append(Event(sequence=self.response.last_sequence, **event))  # type: ignore[arg-type]

    def progress(self, **progress: object) -> None:
        """Make an event that does not end the response."""
        if (response := progress.get("created") or progress.get("queued") or progress.get("in_progress")) is not None:
            assert isinstance(response, v1.ResponseObject)
            shown = v1.ResponseObject()
            shown.CopyFrom(response)
            shown.last_sequence += 1
            progress = dict.fromkeys(progress, shown)
        self.emit(progress=v1.ResponseProgress(**progress))  # type: ignore[arg-type]

    def add(self, prefix: str, item: v1.ResponseItem) -> int:
        """Begin an item; returns its place."""
        index = len(self.response.output)
        member = getattr(item, item.WhichOneof("item") or "")
        member.id = derived_id(prefix, self.response.id, index)
        self.response.output.append(item)
        event = v1.ResponseOutputItemEvent(response_id=self.response.id, output_index=index, item=item)
        self.progress(output_item_added=event)
        return index

    def done(self, index: int) -> None:
        """End an item."""
        item = self.response.output[index]
        event = v1.ResponseOutputItemEvent(response_id=self.response.id, output_index=index, item=item)
        self.progress(output_item_done=event)

    def item_id(self, index: int) -> str:
        """The id of an item."""
        item = self.response.output[index]
        return str(getattr(item, item.WhichOneof("item") or "").id)

    def state(self, index: int) -> v1.ResponseCallStateEvent:
        """An event of a call that came to another state."""
        return v1.ResponseCallStateEvent(item_id=self.item_id(index), output_index=index)

    def part(self, index: int, part: v1.ResponseContentPart) -> v1.ResponseContentPartEvent:
        """An event of a part of an item."""
        return v1.ResponseContentPartEvent(
            response_id=self.response.id, item_id=self.item_id(index), output_index=index, part=part
        )
