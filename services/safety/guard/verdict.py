"""The verdict of a Llama Guard over all windows of a text."""

from collections.abc import Sequence
from typing import Any

from llamastack import v1
from services.safety.guard.asking import Answer
from services.safety.guard.categories import CategorySet
from services.safety.guard.conversation import Conversation
from services.safety.guard.model import Tally
from services.safety.guard.profiles import HAZARDS, UNSPECIFIED
from services.safety.guard.target import Target
from services.safety.guard.windows import Plan
from services.safety.shield import Judgement


def judgement(
    target: Target,
    conversation: Conversation,
    reading: Plan,
    answers: Sequence[Answer],
    *,
    threshold: float,
    tally: Tally,
) -> Judgement:
    """The strongest score of all windows; one that could not be judged fails the text unless another one decides."""
    scored = [answer for answer in answers if answer.score is not None]
    worst = max(scored, key=lambda answer: answer.score or 0.0, default=None)
    metadata = _metadata(target, conversation, reading, answers, worst)
    failed = next((answer.failure for answer in answers if answer.score is None), "")
    if not answers:
        failed = f"the context of {target.model.model_id!r} is too small for the guard's prompt"
    score = worst.score if worst is not None else None
    found = score is not None and score >= threshold and score > 0
    if failed and not found:
        score = None
    categories = target.categories
    return Judgement(
        codes=_codes(answers, categories) if found and score is not None else (),
        score=score,
        score_kind=(
            v1.SCORE_KIND_MODEL_PROBABILITY
            if worst is not None and worst.scored_by != "text"
            else v1.SCORE_KIND_UNSPECIFIED
        ),
        category_scores=_category_scores(answers, categories),
        coverage=reading.coverage,
        failure="" if found else failed,
        model=target.model.model_id,
        model_hash=target.model_hash,
        guard_calls=tally.calls,
        guard_tokens=tally.tokens,
        guard_bytes=tally.bytes,
        metadata=metadata,
    )


def _codes(answers: Sequence[Answer], categories: CategorySet) -> tuple[str, ...]:
    own = dict.fromkeys(code for answer in answers if answer.reply for code in answer.reply.own_codes)
    return tuple(dict.fromkeys(categories.profile.common_code(code) for code in own)) or (UNSPECIFIED,)


def _category_scores(answers: Sequence[Answer], categories: CategorySet) -> dict[str, float]:
    """By common code: own codes that share one are summed, as shares of one whole; then the most over the windows."""
    most: dict[str, float] = {}
    for answer in answers:
        summed: dict[str, float] = {}
        for own, score in answer.category_scores.items():
            common = categories.profile.common_code(own)
            summed[common] = summed.get(common, 0.0) + score
        for common, score in summed.items():
            most[common] = max(most.get(common, 0.0), score)
    return most


def _metadata(
    target: Target,
    conversation: Conversation,
    reading: Plan,
    answers: Sequence[Answer],
    worst: Answer | None,
) -> dict[str, Any]:
    categories = target.categories
    replies = [answer.reply for answer in answers if answer.reply]
    own = list(dict.fromkeys(code for reply in replies for code in reply.own_codes))
    common = {categories.profile.common_code(code): categories.name_of(code) for code in own}
    outside = [answer.outside_mass for answer in answers if answer.outside_mass is not None]
    facts: dict[str, Any] = {
        "own_codes": own,
        "unknown_codes": list(dict.fromkeys(code for reply in replies for code in reply.unknown_codes)),
        "excluded_codes": list(
            dict.fromkeys(categories.profile.common_code(code) for reply in replies for code in reply.excluded_codes)
        ),
        "category_names": {code: HAZARDS.get(code, name) for code, name in common.items()},
        "findings": conversation.findings,
        "context_findings": conversation.context_findings,
        "role_mapped": conversation.role_mapped,
        "placeholder": conversation.placeholder,
        "turns_dropped": reading.dropped,
        "context_cut": reading.context_cut,
    }
    measured = {"p_unsafe": worst.p_unsafe if worst else None, "outside_mass": max(outside, default=None)}
    return {
        "profile": categories.profile.name,
        "template": target.route.template,
        "role": conversation.role,
        "scored_by": worst.scored_by if worst else "nothing",
        "windows": len(reading.windows),
        **{key: value for key, value in measured.items() if value is not None},
        **{key: value for key, value in facts.items() if value},
    }
