"""The prompt of a Llama Guard, for models that come without a template of their own.

Its structure and fixed wording are the interface that the models were trained on; what may differ between versions is
in the profile's frame. Published formatters serve as oracles in the tests, with every deviation named there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from services.safety.guard.categories import CategorySet

Role = Literal["User", "Agent"]


@dataclass(frozen=True)
class Turn:
    """A turn of the conversation as a guard sees it; its text is quoted already."""

    role: Role
    text: str


def body(turns: Sequence[Turn], categories: CategorySet) -> str:
    """The prompt without special tokens: task, categories, conversation, closing. The last turn's role is judged."""
    role = turns[-1].role
    parts = [
        _task(role, categories),
        _categories(categories),
        _conversation(turns, categories),
        _closing(role, categories),
    ]
    return "\n\n".join(parts)


def whole(turns: Sequence[Turn], categories: CategorySet) -> str:
    """The prompt with its special tokens written out, up to the start of the answer."""
    frame = categories.profile.frame
    return f"{frame.before}{body(turns, categories)}{frame.after}"


def _task(role: Role, categories: CategorySet) -> str:
    words = categories.profile.frame.policy_words
    return (
        f"Task: Check if there is unsafe content in '{role}' messages in conversations {words} safety policy "
        "with the below categories."
    )


def _categories(categories: CategorySet) -> str:
    lines = [f"{code}: {line}" for code, line in categories.lines().items()]
    return "\n".join(["<BEGIN UNSAFE CONTENT CATEGORIES>", *lines, "<END UNSAFE CONTENT CATEGORIES>"])


def _conversation(turns: Sequence[Turn], categories: CategorySet) -> str:
    frame = categories.profile.frame
    said = "".join(f"{turn.role}: {turn.text}{frame.after_turn}" for turn in turns)
    return f"<BEGIN CONVERSATION>\n{frame.before_turns}{said}<END CONVERSATION>"


def _closing(role: Role, categories: CategorySet) -> str:
    frame = categories.profile.frame
    judged = f"ONLY THE LAST {role} message" if frame.last_message_only else role
    rules = [
        "First line must read 'safe' or 'unsafe'.",
        "If unsafe, a second line must include a comma-separated list of violated categories.",
    ]
    return "\n".join(
        [
            f"Provide your safety assessment for {judged} in the above conversation:",
            *(f"{frame.bullet}{rule}" for rule in rules),
        ]
    )
