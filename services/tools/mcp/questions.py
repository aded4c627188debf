"""What servers ask while a call runs, as a question of the call's result, and the answer back.

Without sessions the server ends the call with its questions and a state of its own; all of it goes into the result's
`state`, and any process can go on. A session waits instead: `state` then names the waiting call in this process.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import mcp_types as types
from google.protobuf import json_format
from pydantic import ValidationError

from llamastack import v1
from stack_client.content import plain
from stack_client.errors import InvalidArgumentError

FIELD = "input_response"
_ACTIONS = {"accept", "decline", "cancel"}


@dataclass
class Round:
    """Questions of a call without a session, and the answers so far."""

    pending: dict[str, Any] = field(default_factory=dict)
    """Parameters of the questions that have no answer, by the server's name of each."""
    answers: dict[str, Any] = field(default_factory=dict)
    """Answers by the server's name of the question."""
    request_state: str | None = None
    """The server's."""

    def dump(self) -> str:
        """As the `state` of a result."""
        return json.dumps({"pending": self.pending, "answers": self.answers, "request_state": self.request_state})

    def settle(self, answered: types.ElicitResult) -> None:
        """Note the answer to the first question."""
        first = next(iter(self.pending))
        del self.pending[first]
        self.answers[first] = answered.model_dump(mode="json", by_alias=True, exclude_none=True)

    @property
    def responses(self) -> types.InputResponses:
        """The answers as the server takes them."""
        return {key: types.ElicitResult.model_validate(value) for key, value in self.answers.items()}


@dataclass(frozen=True)
class Held:
    """A call that waits in a session of this process."""

    token: str

    def dump(self) -> str:
        """As the `state` of a result."""
        return json.dumps({"held": self.token})


def load(state: str) -> Round | Held:
    """Read a `state`.

    Raises:
        InvalidArgumentError: If no provider of ours made it.
    """
    try:
        found = json.loads(state)
        if "held" in found:
            return Held(str(found["held"]))
        round_ = Round(dict(found["pending"]), dict(found["answers"]), found["request_state"])
        _ = round_.responses
        for params in round_.pending.values():
            parse(params)
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        message = "input_response.state is not the state of the question: send it back unchanged"
        raise InvalidArgumentError(message, field=f"{FIELD}.state") from error
    return round_


def parse(params: Mapping[str, Any]) -> types.ElicitRequestParams:
    """The question again."""
    if params.get("mode") == "url":
        return types.ElicitRequestURLParams.model_validate(params)
    return types.ElicitRequestFormParams.model_validate(params)


def unparsed(params: types.ElicitRequestParams) -> dict[str, Any]:
    """The question as JSON."""
    return params.model_dump(mode="json", by_alias=True, exclude_none=True)


def question(params: types.ElicitRequestParams, state: str) -> v1.ToolInvocationResult:
    """The question as a result."""
    asked = v1.ToolInputRequest(message=params.message, state=state)
    if isinstance(params, types.ElicitRequestURLParams):
        asked.url = params.url
    else:
        asked.requested_schema.update(params.requested_schema)
    return v1.ToolInvocationResult(input_required=asked)


def answer(response: v1.ToolInputResponse) -> types.ElicitResult:
    """A person's answer as the server takes it.

    Raises:
        InvalidArgumentError: If it is none.
    """
    if response.action not in _ACTIONS:
        message = f"input_response.action is {response.action!r}: give accept, decline or cancel"
        raise InvalidArgumentError(message, field=f"{FIELD}.action")
    content = None
    if response.HasField("content"):
        if response.action != "accept":
            message = f"input_response.content goes with accept only, not with {response.action}"
            raise InvalidArgumentError(message, field=f"{FIELD}.content")
        content = plain(json_format.MessageToDict(response.content))
    try:
        return types.ElicitResult.model_validate({"action": response.action, "content": content})
    except ValidationError as error:
        message = "input_response.content holds texts, numbers, yes or no, or lists of texts by name, nothing deeper"
        raise InvalidArgumentError(message, field=f"{FIELD}.content") from error
