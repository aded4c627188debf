"""What a turn has spent, and where it has to stop."""

from llamastack import v1
from services.agents.turn_log import now
from stack_client.errors import InvalidArgumentError, ResourceExhaustedError

MILLION = 1_000_000


def count(turn: v1.Turn, usage: v1.Usage, budget: v1.TurnBudget) -> None:
    """Add what an inference step used."""
    total = turn.usage
    total.prompt_tokens += usage.prompt_tokens
    total.completion_tokens += usage.completion_tokens
    total.total_tokens += usage.total_tokens
    total.cached_tokens += usage.cached_tokens
    if budget.HasField("prompt_token_price") or budget.HasField("completion_token_price"):
        cost = usage.prompt_tokens * budget.prompt_token_price + usage.completion_tokens * budget.completion_token_price
        turn.cost += cost / MILLION


def check_spent(turn: v1.Turn, budget: v1.TurnBudget) -> None:
    """Stop a turn that has spent its budget before it takes another inference step.

    Raises:
        ResourceExhaustedError: Naming what is spent.
    """
    total = turn.usage.total_tokens
    if budget.HasField("max_total_tokens") and total >= budget.max_total_tokens:
        _refuse("max_total_tokens", f"{total} of {budget.max_total_tokens} tokens are spent")
    if budget.HasField("max_cost") and turn.cost >= budget.max_cost:
        _refuse("max_cost", f"{turn.cost:.6g} of {budget.max_cost:.6g} is spent")
    left = seconds_left(turn, budget)
    if left is not None and left <= 0:
        _refuse("max_seconds", f"{budget.max_seconds:g} s have passed")


def seconds_left(turn: v1.Turn, budget: v1.TurnBudget) -> float | None:
    """Time that a turn may still take, without what it waited for its caller; None without a bound."""
    if not budget.HasField("max_seconds"):
        return None
    taken = (now().ToMilliseconds() - turn.started_at.ToMilliseconds()) / 1000 - turn.waited_seconds
    return float(budget.max_seconds - taken)


def out_of_time(budget: v1.TurnBudget) -> ResourceExhaustedError:
    """The error of a turn that was stopped in the middle of a step."""
    return _spent("max_seconds", f"{budget.max_seconds:g} s have passed")


def check_budget(budget: v1.TurnBudget, *, field: str) -> None:
    """Refuse bounds that no turn could meet.

    Raises:
        InvalidArgumentError: Naming the field.
    """
    for name in ("max_total_tokens", "max_cost", "max_seconds"):
        if budget.HasField(name) and not getattr(budget, name) > 0:
            message = f"{field}.{name} is {getattr(budget, name):g}; give more than 0, or leave it unset"
            raise InvalidArgumentError(message, field=f"{field}.{name}")
    prices = ("prompt_token_price", "completion_token_price")
    for name in prices:
        if getattr(budget, name) < 0:
            raise InvalidArgumentError(f"{field}.{name} is below 0", field=f"{field}.{name}")
    if budget.HasField("max_cost") and not any(getattr(budget, name) > 0 for name in prices):
        message = f"{field}.max_cost needs a price; set {' or '.join(prices)}, of a million tokens"
        raise InvalidArgumentError(message, reason="MISSING_FIELD", field=f"{field}.max_cost")


def _refuse(name: str, why: str) -> None:
    raise _spent(name, why)


def _spent(name: str, why: str) -> ResourceExhaustedError:
    message = f"the turn's budget is used up: {why} ({name}); raise it in the agent's budget, or ask for less"
    return ResourceExhaustedError(message, reason="QUOTA_EXCEEDED", field=f"agent_config.budget.{name}")
