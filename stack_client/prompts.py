"""`client.prompts`: prompt templates with versions."""

import uuid
from collections.abc import Sequence
from typing import Any, TypeAlias

import grpc

from llamastack import v1
from stack_client.calls import DEFAULT_TIMEOUT, every_page, unary

PromptList: TypeAlias = list[v1.Prompt]


class Prompts:
    """Calls of `PromptsService`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = v1.PromptsServiceStub(channel)

    async def create(
        self, prompt: str, variables: Sequence[str] = (), *, timeout: float = DEFAULT_TIMEOUT
    ) -> v1.Prompt:
        """Create a prompt; its slots, written `{{ name }}`, are among `variables`.

        Raises:
            InvalidArgumentError: If a slot is not.
        """
        request = v1.CreatePromptRequest(prompt=prompt, variables=variables, request_id=str(uuid.uuid4()))
        response: v1.CreatePromptResponse = await unary(self._stub.CreatePrompt(request, timeout=timeout))
        return response.prompt

    async def get(self, prompt_id: str, *, version: int | None = None, timeout: float = DEFAULT_TIMEOUT) -> v1.Prompt:
        """One version, the default one where none is named.

        Raises:
            NotFoundError: If there is none.
        """
        request = v1.GetPromptRequest(prompt_id=prompt_id, version=version)
        response: v1.GetPromptResponse = await unary(self._stub.GetPrompt(request, timeout=timeout))
        return response.prompt

    async def list(self, *, timeout: float = DEFAULT_TIMEOUT) -> PromptList:
        """The default version of every prompt, newest first.

        Raises:
            StackError: If the call fails.
        """
        return await every_page(self._stub.ListPrompts, v1.ListPromptsRequest(), timeout=timeout)

    async def versions(self, prompt_id: str, *, timeout: float = DEFAULT_TIMEOUT) -> PromptList:
        """All versions of a prompt, oldest first.

        Raises:
            NotFoundError: If there is no such prompt.
        """
        request = v1.ListPromptVersionsRequest(prompt_id=prompt_id)
        return await every_page(self._stub.ListPromptVersions, request, timeout=timeout)

    async def update(
        self,
        prompt_id: str,
        prompt: str,
        variables: Sequence[str] = (),
        *,
        version: int,
        set_as_default: bool | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> v1.Prompt:
        """Add a version.

        Args:
            prompt_id: The prompt.
            prompt: Its new text.
            variables: Names of all slots.
            version: The version that this edit is based on; must be the latest.
            set_as_default: Whether it becomes the default; None means yes.
            timeout: Seconds until the call gives up.

        Raises:
            ConflictError: If another edit came first.
        """
        request = v1.UpdatePromptRequest(
            prompt_id=prompt_id,
            prompt=prompt,
            variables=variables,
            version=version,
            set_as_default=set_as_default,
            request_id=str(uuid.uuid4()),
        )
        response: v1.UpdatePromptResponse = await unary(self._stub.UpdatePrompt(request, timeout=timeout))
        return response.prompt

    async def set_default(self, prompt_id: str, version: int, *, timeout: float = DEFAULT_TIMEOUT) -> v1.Prompt:
        """Choose the version that is used when none is named.

        Raises:
            NotFoundError: If there is no such version.
        """
        request = v1.SetDefaultPromptVersionRequest(prompt_id=prompt_id, version=version)
        response: v1.SetDefaultPromptVersionResponse = await unary(
            self._stub.SetDefaultPromptVersion(request, timeout=timeout)
        )
        return response.prompt

    async def delete(self, prompt_id: str, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Delete a prompt with all versions.

        Raises:
            NotFoundError: If there is none.
        """
        await unary(self._stub.DeletePrompt(v1.DeletePromptRequest(prompt_id=prompt_id), timeout=timeout))
