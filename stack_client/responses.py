"""`client.responses`: OpenAI's Responses; one call runs model and tools until an answer is there."""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import grpc

from llamastack import v1
from stack_client.calls import DEFAULT_TIMEOUT, EventStream, every_page, unary

Input: TypeAlias = str | Sequence[v1.ResponseItem]
"""What is asked: items, or a text, which is one message of the user."""
ResponseList: TypeAlias = list[v1.ResponseObject]
ItemList: TypeAlias = list[v1.ResponseItem]


def user_item(text: str) -> v1.ResponseItem:
    """A message of the user."""
    part = v1.ResponseContentPart(input_text=v1.InputText(text=text))
    return v1.ResponseItem(message=v1.ResponseMessage(role=v1.RESPONSE_ROLE_USER, content=[part]))


def function_output(call_id: str, text: str) -> v1.ResponseItem:
    """What a function of the caller gave."""
    part = v1.ResponseContentPart(input_text=v1.InputText(text=text))
    return v1.ResponseItem(function_call_output=v1.FunctionCallOutputItem(call_id=call_id, output=[part]))


def approval(request_id: str, *, approve: bool, reason: str | None = None) -> v1.ResponseItem:
    """The decision on a call that waits for approval."""
    decision = v1.MCPApprovalResponseItem(approval_request_id=request_id, approve=approve, reason=reason)
    return v1.ResponseItem(mcp_approval_response=decision)


def output_text(response: v1.ResponseObject) -> str:
    """The text of a response's messages."""
    parts = [part for item in response.output for part in item.message.content]
    return "".join(part.output_text.text for part in parts)


class Responses:
    """Calls of `ResponsesService`; creating calls carry a fresh request id, so that a retry cannot do them twice."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = v1.ResponsesServiceStub(channel)

    async def create(
        self,
        model: str,
        input: Input,  # noqa: A002 (OpenAI's name)
        *,
        instructions: str | None = None,
        previous_response_id: str | None = None,
        conversation: str | None = None,
        tools: Sequence[v1.ResponseTool] = (),
        store: bool | None = None,
        background: bool | None = None,
        metadata: Mapping[str, str] | None = None,
        options: v1.CreateResponseRequest | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> v1.ResponseObject:
        """Make a response; returns it ended, or queued where it runs in the background.

        Args:
            model: The model.
            input: What is asked.
            instructions: System message of this call only.
            previous_response_id: Its input and output come before `input`.
            conversation: Items are read from it and appended to it.
            tools: Tools that the model may use.
            store: Keep the response; None means yes.
            background: Answer at once and work on without the caller.
            metadata: The user's facts.
            options: All other fields.
            timeout: Seconds until the call gives up.

        Raises:
            NotFoundError: If model, previous response, conversation or prompt does not exist.
            ConflictError: If another response writes to the conversation.
            UnsupportedError: If a field asks for what is not built.
        """
        request = _request(
            options,
            model=model,
            input=[user_item(input)] if isinstance(input, str) else input,
            instructions=instructions,
            previous_response_id=previous_response_id,
            conversation=conversation,
            tools=tools,
            store=store,
            background=background,
            metadata=metadata,
        )
        response: v1.CreateResponseResponse = await unary(self._stub.CreateResponse(request, timeout=timeout))
        return response.response

    def stream(
        self,
        model: str,
        input: Input,  # noqa: A002
        *,
        previous_response_id: str | None = None,
        conversation: str | None = None,
        tools: Sequence[v1.ResponseTool] = (),
        options: v1.CreateResponseRequest | None = None,
    ) -> EventStream[v1.StreamCreateResponseResponse]:
        """Make a response; returns its events. A stream that is lost is taken up by `watch`.

        Args:
            model: The model.
            input: What is asked.
            previous_response_id: Its input and output come before `input`.
            conversation: Items are read from it and appended to it.
            tools: Tools that the model may use.
            options: All other fields.
        """
        request = _request(
            options,
            model=model,
            input=[user_item(input)] if isinstance(input, str) else input,
            previous_response_id=previous_response_id,
            conversation=conversation,
            tools=tools,
        )
        return EventStream(self._stub.StreamCreateResponse(v1.StreamCreateResponseRequest(request=request)))

    def watch(self, response_id: str, *, after_sequence: int = 0) -> EventStream[v1.WatchResponseResponse]:
        """The events of a stored response from a sequence on."""
        request = v1.WatchResponseRequest(response_id=response_id, resume_after_sequence=after_sequence)
        return EventStream(self._stub.WatchResponse(request))

    async def get(self, response_id: str, *, timeout: float = DEFAULT_TIMEOUT) -> v1.ResponseObject:
        """A stored response as it stands.

        Raises:
            NotFoundError: If there is none.
        """
        request = v1.GetResponseRequest(response_id=response_id)
        response: v1.GetResponseResponse = await unary(self._stub.GetResponse(request, timeout=timeout))
        return response.response

    async def list(self, *, model: str = "", timeout: float = DEFAULT_TIMEOUT) -> ResponseList:
        """Stored responses with their input, newest first.

        Raises:
            StackError: If the call fails.
        """
        request = v1.ListResponsesRequest(model=model)
        return await every_page(self._stub.ListResponses, request, timeout=timeout)

    async def input_items(self, response_id: str, *, timeout: float = DEFAULT_TIMEOUT) -> ItemList:
        """What a response was asked, in order.

        Raises:
            NotFoundError: If there is no such response.
        """
        request = v1.ListResponseInputItemsRequest(response_id=response_id, order=v1.SORT_ORDER_ASC)
        return await every_page(self._stub.ListResponseInputItems, request, timeout=timeout)

    async def delete(self, response_id: str, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Delete a response that has ended.

        Raises:
            NotFoundError: If there is none.
            FailedPreconditionError: If it runs.
        """
        await unary(self._stub.DeleteResponse(v1.DeleteResponseRequest(response_id=response_id), timeout=timeout))

    async def cancel(self, response_id: str, *, timeout: float = DEFAULT_TIMEOUT) -> v1.ResponseObject:
        """Stop a background response.

        Raises:
            FailedPreconditionError: If it does not run in the background, or has ended.
        """
        request = v1.CancelResponseRequest(response_id=response_id)
        response: v1.CancelResponseResponse = await unary(self._stub.CancelResponse(request, timeout=timeout))
        return response.response

    async def compact(
        self,
        model: str,
        input: Input = (),  # noqa: A002
        *,
        previous_response_id: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> v1.CompactResponseResponse:
        """A long dialog as items that can be the input of a later call.

        Raises:
            NotFoundError: If the previous response does not exist.
        """
        items = [user_item(input)] if isinstance(input, str) else input
        request = v1.CompactResponseRequest(model=model, input=items, previous_response_id=previous_response_id)
        response: v1.CompactResponseResponse = await unary(self._stub.CompactResponse(request, timeout=timeout))
        return response


def _request(options: v1.CreateResponseRequest | None, **fields: object) -> v1.CreateResponseRequest:
    request = v1.CreateResponseRequest()
    if options is not None:
        request.CopyFrom(options)
    given = {name: value for name, value in fields.items() if value is not None}
    request.MergeFrom(v1.CreateResponseRequest(**given))  # type: ignore[arg-type]
    request.request_id = request.request_id or str(uuid.uuid4())
    return request
