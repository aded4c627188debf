"""A long dialog as one item: a summary that a later response takes in its place."""

import sqlalchemy as sa

from llamastack import v1
from services.agents.compaction import summary_request
from services.agents.responses import records
from services.agents.responses.engine import Responses
from services.agents.responses.items import COMPACTED, joined, messages_of, new_id, taken
from services.agents.turn_log import now
from stack_client.content import text_of
from stack_client.errors import InvalidArgumentError, UnsupportedError
from stack_client.inference import Inference

LONGEST_CHARACTERS = 100_000
"""Of one message that the summariser reads."""


async def compact(
    request: v1.CompactResponseRequest, *, engine: Responses, inference: Inference, tenant: str
) -> v1.CompactResponseResponse:
    """Summarise a dialog; nothing is stored.

    Raises:
        NotFoundError: If there is no such response.
        UnsupportedError: If a field asks for what is not built.
        InvalidArgumentError: If there is nothing to compact, or it does not fit the model.
    """
    if not request.model:
        raise InvalidArgumentError("model is empty", reason="MISSING_FIELD", field="model")
    for name in ("reasoning", "text", "tools"):
        if request.HasField(name) if name != "tools" else bool(request.tools):  # type: ignore[arg-type]
            raise UnsupportedError(f"{name} changes no summary; leave it out", field=name)
    if request.HasField("instructions"):
        # They stay the caller's to give with the later call: a summary would turn them into words of the dialog.
        raise UnsupportedError("instructions are not compacted; give them to the later call", field="instructions")
    messages: list[v1.Message] = []
    if request.previous_response_id:
        previous = request.previous_response_id
        await engine.settle_if_over(previous, tenant=tenant)

        def find(connection: sa.Connection) -> list[v1.Message]:
            return records.dialog_through(connection, records.find(connection, previous, tenant=tenant))

        messages += await engine.store.read(find)
    for index, one in enumerate(taken(request.input, field="input")):
        messages += messages_of(one, field=f"input[{index}]")
    if not messages:
        raise InvalidArgumentError("input is empty: there is nothing to compact", field="input")
    config = v1.AgentConfig(model=request.model)
    chat = summary_request(config, joined(messages), before="", longest=LONGEST_CHARACTERS)
    answer = await inference.ask(chat)
    text = COMPACTED + text_of(answer.completion_message.content)
    item = v1.ResponseItem(compaction=v1.CompactionItem(id=new_id("cmp"), encrypted_content=text))
    usage = v1.ResponseUsage(
        input_tokens=answer.usage.prompt_tokens,
        output_tokens=answer.usage.completion_tokens,
        total_tokens=answer.usage.total_tokens,
        input_tokens_details=v1.InputTokensDetails(cached_tokens=answer.usage.cached_tokens),
        output_tokens_details=v1.OutputTokensDetails(),
    )
    return v1.CompactResponseResponse(id=new_id("resp"), created_at=now(), output=[item], usage=usage)
