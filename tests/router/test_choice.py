"""Which node gets a request, and what is known of the nodes: without processes and without gRPC."""

import grpc
import pytest

from llamastack import v1
from services.router.choice import Candidate, choose
from services.router.config import RouterConfig
from services.router.nodes import NodeTable
from services.router.prefix import MAX_BLOCKS, PrefixMemory, chat_chain, completion_chain
from stack_client.content import content
from stack_client.errors import InvalidArgumentError, NotFoundError

RULES = RouterConfig(overload_requests=4, overload_factor=1.5, level_requests=1, prefix_min_blocks=2)


def node(name: str, load: int = 0, matched: int = 0, last_chosen: int = 0) -> Candidate:
    return Candidate(node_id=name, load=load, matched=matched, last_chosen=last_chosen)


@pytest.mark.parametrize(
    ("candidates", "sticky", "expected"),
    [
        ([node("a", load=3), node("b", load=1)], None, ("b", "load")),
        ([node("a", last_chosen=2), node("b", last_chosen=1)], None, ("b", "load")),
        # The longest match wins while its node is not overloaded...
        ([node("a", load=4, matched=9), node("b", matched=3)], None, ("a", "prefix")),
        ([node("a", load=5, matched=9), node("b", matched=3)], None, ("b", "load")),
        # ...which it is only when both bounds are passed...
        ([node("a", load=16, matched=9), node("b", load=11)], None, ("a", "prefix")),
        ([node("a", load=17, matched=9), node("b", load=11)], None, ("b", "load")),
        # ...and when it is long enough.
        ([node("a", load=1, matched=1), node("b")], None, ("b", "load")),
        ([node("a", load=2, matched=5), node("b", load=1, matched=5)], None, ("b", "prefix")),
        # A session decides among nodes that are about equally busy, after the prefix.
        ([node("a", load=1), node("b")], "a", ("a", "session")),
        ([node("a", load=2), node("b")], "a", ("b", "load")),
        ([node("a"), node("b", matched=2)], "a", ("b", "prefix")),
        ([node("a"), node("b", last_chosen=1)], "gone", ("a", "load")),
    ],
)
def test_prefix_first_load_second_session_third(
    candidates: list[Candidate], sticky: str | None, expected: tuple[str, str]
) -> None:
    choice = choose(candidates, sticky=sticky, rules=RULES)
    assert (choice.node_id, choice.why) == expected
    assert choose(candidates[::-1], sticky=sticky, rules=RULES) == choice


def dialog(*texts: str, model: str = "m", tool: str = "") -> v1.ChatCompletionRequest:
    return v1.ChatCompletionRequest(
        model_id=model,
        messages=[v1.Message(user=v1.UserMessage(content=content(text))) for text in texts],
        tools=[v1.ToolDefinition(tool_name=tool)] if tool else [],
    )


def shared(one: v1.ChatCompletionRequest, other: v1.ChatCompletionRequest) -> int:
    chains = [chat_chain(request, tenant="", block_bytes=16) for request in (one, other)]
    return next((n for n, (x, y) in enumerate(zip(*chains, strict=False)) if x != y), min(map(len, chains)))


def test_a_chain_is_shared_as_far_as_the_beginnings_are() -> None:
    start = "0123456789" * 16
    assert shared(dialog(start), dialog(start)) == 10
    assert shared(dialog(start + "and more"), dialog(start + "or something else")) == 10
    assert shared(dialog(start, "next"), dialog(start, "next", "and next" * 9)) == 11
    assert shared(dialog("x" + start), dialog("y" + start)) == 0
    assert shared(dialog(start), dialog(start, model="n")) == 0
    assert shared(dialog(start), dialog(start, tool="t")) == 0
    tenants = [chat_chain(dialog(start), tenant=tenant, block_bytes=16) for tenant in ("a", "b")]
    assert not {*tenants[0]} & {*tenants[1]}
    assert len(chat_chain(dialog("x" * 100_000), tenant="", block_bytes=16)) == MAX_BLOCKS


def test_texts_and_token_ids_have_chains_too() -> None:
    texts = [v1.CompletionRequest(model_id="m", content=content("ab" * 32 + end)) for end in ("x", "y")]
    ids = [v1.CompletionRequest(model_id="m", token_ids=[*range(100, 150), end]) for end in (1, 2)]
    for pair in (texts, ids):
        one, other = (completion_chain(request, tenant="", block_bytes=16) for request in pair)
        assert one[:4] == other[:4]
        assert len(one) >= 4


def test_a_memory_forgets_the_ends_of_chains_used_longest_ago_first() -> None:
    memory = PrefixMemory(4)
    old, new = [b"1", b"2", b"3"], [b"4", b"5"]
    memory.add(old)
    memory.add(new)
    assert (len(memory), memory.matched(old), memory.matched(new)) == (4, 2, 2)
    memory.add(old[:1])
    memory.add([b"6"])
    assert memory.matched(old) == 1


class Clock:
    """Seconds that go forward when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def table_of(clock: Clock) -> NodeTable:
    return NodeTable(
        RouterConfig(lease_seconds=6), open_channel=grpc.aio.insecure_channel, on_change=lambda: None, clock=clock
    )


def place(
    name: str = "a", running: int = 0, state: "v1.ModelState.ValueType" = v1.MODEL_STATE_READY
) -> v1.RegisterNodeRequest:
    model = v1.Model(identifier="m", state=state)
    report = v1.NodeReport(load=v1.NodeLoad(running=running), models=[model])
    return v1.RegisterNodeRequest(node_id=name, address="unix:/nowhere", report=report)


async def test_a_lease_runs_out_unless_it_is_renewed_and_then_is_unknown() -> None:
    clock = Clock()
    table = table_of(clock)
    lease = table.register(place()).lease_id
    for _ in range(4):
        clock.now += 2
        await table.sweep()
        table.renew(lease, place().report)
    assert [node.state for node in table.alive] == [v1.NODE_STATE_READY]
    for _ in range(3):
        clock.now += 2
        await table.sweep()
    assert not table.alive
    assert [node.state for node in table.nodes] == [v1.NODE_STATE_LOST]
    with pytest.raises(NotFoundError, match="register again"):
        table.renew(lease, place().report)
    for _ in range(30):
        clock.now += 2
        await table.sweep()
    assert not table.nodes


async def test_a_router_that_stood_still_does_not_blame_the_nodes() -> None:
    clock = Clock()
    table = table_of(clock)
    table.register(place())
    clock.now += 60
    await table.sweep()
    assert len(table.alive) == 1
    await table.close()


async def test_load_is_what_the_node_told_corrected_by_our_own_calls_since() -> None:
    table = table_of(Clock())
    node = table.register(place(running=3))

    class Call:
        def cancel(self) -> None:
            pass

    with node.calling(Call()):
        assert node.load == 4
        table.renew(node.lease_id, place(running=4).report)  # ours is among them now
        assert node.load == 4
    assert node.load == 3
    table.renew(node.lease_id, place(running=0).report)
    assert node.load == 0
    await table.close()


async def test_of_one_model_the_registration_that_is_furthest_is_shown() -> None:
    table = table_of(Clock())
    for name, state in (("a", v1.MODEL_STATE_FAILED), ("b", v1.MODEL_STATE_READY), ("c", v1.MODEL_STATE_LOADING)):
        table.register(place(name, state=state))
    assert table.models["m"].state == v1.MODEL_STATE_READY
    await table.close()


async def test_a_node_without_a_name_or_an_address_is_refused() -> None:
    table = table_of(Clock())
    for field in ("node_id", "address"):
        request = place()
        request.ClearField(field)
        with pytest.raises(InvalidArgumentError, match=f"{field} is empty"):
            table.register(request)
    with pytest.raises(InvalidArgumentError, match="characters"):
        table.register(place("x" * 129))
