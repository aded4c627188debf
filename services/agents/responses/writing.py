"""What a model writes in one step, as items: its thoughts, where it shows some, and its message."""

from collections.abc import Sequence
from typing import TypeAlias

from llamastack import v1
from services.agents.responses.output import Output
from services.agents.responses.thoughts import Thoughts

Status: TypeAlias = "v1.ResponseItemStatus.ValueType"
_RUNS = v1.RESPONSE_ITEM_STATUS_IN_PROGRESS
_DONE = v1.RESPONSE_ITEM_STATUS_COMPLETED
_CUT = v1.RESPONSE_ITEM_STATUS_INCOMPLETE


class Writing:
    """Writes the items of one inference step.

    A step that begins anew shows only what goes beyond what it had written before. Where it writes something else, its
    items are left as incomplete ones, which say nothing to the model later, and new ones begin.

    Args:
        output: Of the response.
    """

    def __init__(self, output: Output) -> None:
        self._out = output
        self._raw = ""
        self._again: str | None = None
        self._heard: list[v1.TokenLogProbs] = []  # of text that is not shown yet
        self._begin()

    def _begin(self) -> None:
        self._thoughts = Thoughts()
        self._thought: int | None = None
        self._message: int | None = None
        self._texts = {"thought": "", "answer": ""}
        self._logprobs: list[v1.ResponseLogProb] = []

    def write(self, text: str, logprobs: Sequence[v1.TokenLogProbs]) -> None:
        """Take a piece of text."""
        self._heard += logprobs
        if self._again is None:
            self._raw += text
            self._show(text)
            return
        self._again += text
        if self._again.startswith(self._raw):
            self._catch_up()
        elif not self._raw.startswith(self._again):
            self._start_over()

    def restart(self) -> None:
        """The step begins anew."""
        self._again = ""
        self._heard = []

    def finish(self, text: str, status: Status) -> None:
        """The step is over.

        Args:
            text: All that it wrote.
            status: Of its message.
        """
        self._again = text
        if text.startswith(self._raw):
            self._catch_up()
        else:
            self._start_over()
        self.close(status)

    def close(self, status: Status) -> None:
        """End the items as they are."""
        for kind, piece in self._thoughts.finish():
            self._put(kind, piece)
        self._close_thought(status)
        self._close_message(status)
        self._raw, self._again, self._heard = "", None, []
        self._begin()

    def snapshot(self) -> None:
        """Put what is written so far into the items."""
        if self._thought is not None:
            self._reasoning(self._thought).content[0].text = self._texts["thought"]
        if self._message is not None:
            self._part(self._message).output_text.text = self._texts["answer"]

    def _catch_up(self) -> None:
        more = (self._again or "")[len(self._raw) :]
        self._raw += more
        self._again = None
        self._show(more)

    def _start_over(self) -> None:
        again, heard = self._again or "", self._heard
        self._out.void.update(index for index in (self._thought, self._message) if index is not None)
        self.close(_CUT)
        self._raw, self._heard = again, heard
        self._show(again)

    def _show(self, text: str) -> None:
        kind = ""
        for kind, piece in self._thoughts.feed(text):
            self._put(kind, piece)
        if kind == "thought":  # their tokens have no place to be shown
            self._heard = []

    def _put(self, kind: str, text: str) -> None:
        if kind == "thought":
            self._think(text)
        else:
            self._close_thought(_DONE)
            self._say(text)

    # Thoughts.

    def _think(self, text: str) -> None:
        if self._thought is None:
            self._thought = self._out.add("rs", v1.ResponseItem(reasoning=v1.ReasoningItem(status=_RUNS)))
            self._reasoning(self._thought).content.add()
            part = v1.ResponseContentPart(reasoning_text=v1.ReasoningText())
            self._out.progress(content_part_added=self._out.part(self._thought, part))
        self._texts["thought"] += text
        place = {"item_id": self._out.item_id(self._thought), "output_index": self._thought}
        self._out.progress(reasoning_text_delta=v1.ResponseTextDeltaEvent(**place, delta=text))  # type: ignore[arg-type]

    def _close_thought(self, status: Status) -> None:
        if self._thought is None:
            return
        index, self._thought = self._thought, None
        item = self._reasoning(index)
        item.content[0].text = text = self._texts["thought"]
        done = v1.ResponseTextDoneEvent(item_id=item.id, output_index=index, text=text)
        self._out.progress(reasoning_text_done=done)
        part = v1.ResponseContentPart(reasoning_text=item.content[0])
        self._out.progress(content_part_done=self._out.part(index, part))
        item.status = status
        self._out.done(index)

    def _reasoning(self, index: int) -> v1.ReasoningItem:
        return self._out.response.output[index].reasoning

    # The message.

    def _say(self, text: str) -> None:
        if self._message is None:
            self._message = begin_message(self._out)
        shown = [_logprob(one) for one in _of_tail(self._heard, text)]
        self._heard = []
        self._logprobs += shown
        self._texts["answer"] += text
        place = {"item_id": self._out.item_id(self._message), "output_index": self._message}
        delta = v1.ResponseTextDeltaEvent(**place, delta=text, logprobs=shown)  # type: ignore[arg-type]
        self._out.progress(output_text_delta=delta)

    def _close_message(self, status: Status) -> None:
        if self._message is None:
            return
        index, self._message = self._message, None
        message = self._out.response.output[index].message
        part = message.content[0]
        part.output_text.text = text = self._texts["answer"]
        part.output_text.logprobs.extend(self._logprobs)
        done = v1.ResponseTextDoneEvent(item_id=message.id, output_index=index, text=text, logprobs=self._logprobs)
        self._out.progress(output_text_done=done)
        self._out.progress(content_part_done=self._out.part(index, part))
        message.status = status
        self._out.done(index)

    def _part(self, index: int) -> v1.ResponseContentPart:
        return self._out.response.output[index].message.content[0]


def begin_message(output: Output, *, refusal: bool = False) -> int:
    """Begin a message with one part; returns its place."""
    message = v1.ResponseMessage(role=v1.RESPONSE_ROLE_ASSISTANT, status=_RUNS)
    index = output.add("msg", v1.ResponseItem(message=message))
    part = output.response.output[index].message.content.add()
    (part.refusal if refusal else part.output_text).SetInParent()
    output.progress(content_part_added=output.part(index, part))
    return index


def refuse(output: Output, text: str) -> None:
    """A message with what a shield says in place of an answer."""
    index = begin_message(output, refusal=True)
    message = output.response.output[index].message
    message.content[0].refusal.refusal = text
    place = {"item_id": message.id, "output_index": index}
    output.progress(refusal_delta=v1.ResponseTextDeltaEvent(**place, delta=text))  # type: ignore[arg-type]
    output.progress(refusal_done=v1.ResponseTextDoneEvent(**place, text=text))  # type: ignore[arg-type]
    output.progress(content_part_done=output.part(index, message.content[0]))
    message.status = _DONE
    output.done(index)


def _of_tail(heard: Sequence[v1.TokenLogProbs], text: str) -> Sequence[v1.TokenLogProbs]:
    """The last tokens, as many as make up a text: those before it belong to thoughts."""
    left = len(text.encode())
    at = len(heard)
    while at and left > 0:
        at -= 1
        left -= len(heard[at].chosen.bytes)
    return heard[at:]


def _logprob(one: v1.TokenLogProbs) -> v1.ResponseLogProb:
    top = [v1.ResponseTopLogProb(token=other.token, logprob=other.logprob, bytes=other.bytes) for other in one.top]
    chosen = one.chosen
    return v1.ResponseLogProb(token=chosen.token, logprob=chosen.logprob, bytes=chosen.bytes, top_logprobs=top)
