"""The built-in rules: phrases of prompt injection and of prompt extraction, forged frames, text hidden from readers.

They are narrow on purpose: a match counts as certain, so each needs the command, its object and the turn against the
instructions in one phrase. What is worded otherwise is for the models.
"""

from collections.abc import Mapping, Sequence
from functools import cache

from services.safety.rules import Rule, RuleSet, compile_pattern

INJECTION = "prompt_injection"
HIDDEN = "hidden_text"

_UNTRUSTED = frozenset({"tool_result", "retrieved", "file", "memory_write"})
_IGNORE = (
    r"(?:ignor(?:e|ing)|disregard(?:ing)?|forget(?:ting)?|overrid(?:e|ing)|overrule|discard|do not follow|don't follow)"
)
_FORMER = r"(?:previous|prior|above|earlier|preceding|foregoing|former|existing|original|initial|system|safety|your)"
_ORDERS = r"(?:instructions?|directions?|directives?|guidelines?|prompts?|programming|rules|commands|orders|policies)"
_FILL = r"(?:(?:all|any|the|of|every|each|these|those|my|and|or|to|you|were|given|have|been)\s+){0,6}"
_SHOW = (
    r"(?:reveal|show|print|repeat|output|display|recite|leak|dump|disclose|echo|tell me|give me|spell out|write out)"
)

_PHRASES: Mapping[str, Sequence[str]] = {
    "ignore-instructions": (
        rf"\b{_IGNORE}\s+{_FILL}{_FORMER}\s+{_FILL}(?:\w+\s+){{0,2}}{_ORDERS}\b",
        rf"\b{_IGNORE}\s+all\s+{_FILL}{_ORDERS}\b",
        (
            r"\b(?:ignore|disregard|forget)\s+(?:everything|anything|all)\s+(?:that\s+)?(?:you\s+(?:were|have been|are)\s+(?:told|taught|given)"
            r"|(?:was\s+)?(?:said|written|stated)?\s*(?:above|before\s+this))\b"
        ),
    ),
    "ignore-instructions-other-languages": (
        (
            r"\bignor(?:iere?|ieren sie)\s+(?:bitte\s+)?(?:alle\s+)?(?:deine|ihre|die|vorherigen|bisherigen|obigen)\s+(?:\w+\s+)?"
            r"(?:anweisungen|regeln|vorgaben|richtlinien)\b"
        ),
        r"\b(?:vergiss|missachte)\s+(?:alle\s+)?(?:deine|die|vorherigen|bisherigen)\s+(?:\w+\s+)?(?:anweisungen|regeln|vorgaben)\b",
        r"\b(?:ignore[zr]?|oublie[zr]?)\s+(?:toutes\s+)?(?:les|vos|tes)\s+(?:\w+\s+)?(?:instructions|consignes|règles)\b",
        r"\b(?:ignor[ae]|olvida|olvide)\s+(?:todas\s+)?(?:las|tus|sus)\s+(?:\w+\s+)?(?:instrucciones|reglas|órdenes)\b",
        r"\b(?:ignora|dimentica|ignori)\s+(?:tutte\s+)?(?:le|tue)\s+(?:\w+\s+)?(?:istruzioni|regole|direttive)\b",
        r"\b(?:ignore|esqueça|desconsidere)\s+(?:todas\s+)?(?:as|suas|tuas)\s+(?:\w+\s+)?(?:instruções|regras|diretrizes)\b",
    ),
    "prompt-extraction": (
        rf"\b{_SHOW}\s+(?:\w+\s+){{0,4}}(?:your|the)\s+(?:\w+\s+)?(?:system|hidden|initial|original|secret)\s+prompt\b",
        (
            rf"\b{_SHOW}\s+(?:\w+\s+){{0,3}}your\s+(?:\w+\s+)?(?:system|hidden|initial|original|secret|exact)\s+"
            r"(?:instructions|rules|message|directives)\b"
        ),
    ),
    "no-rules-persona": (
        (
            r"\byou\s+(?:are|have|will be)\s+(?:now\s+)?(?:\w+\s+){0,3}(?:freed?|released|unbound)\s+(?:from|of)\s+(?:all\s+|any\s+)?"
            r"(?:\w+\s+)?(?:restrictions|rules|limitations|policies)\b"
        ),
        r"\byou\s+(?:now\s+)?have\s+no\s+(?:\w+\s+)?(?:restrictions|rules|guidelines|content policy|filters|limitations)\b",
        r"\byou\s+are\s+(?:now\s+)?(?:an?\s+)?(?:unrestricted|unfiltered|uncensored|jailbroken)\b",
        r"\byou\s+are\s+now\s+in\s+(?:developer|god|debug|admin|jailbreak|unrestricted)\s+mode\b",
        r"\bdo anything now\b",
    ),
    "forged-frame": (
        r"<\|(?:im_start|im_end|begin_of_text|start_header_id|end_header_id|eot_id|endoftext|system|assistant|user)\|>",
        r"<</?SYS>>|\[/?INST\]|<(?:start|end)_of_turn>",
    ),
}

_TOOL_PHRASES: Mapping[str, Sequence[str]] = {
    "addresses-the-model": (
        (
            r"\b(?:note|message|attention|instructions?|important)\s*(?:to|for)?\s*[:,]?\s*(?:the\s+)?(?:ai|llm|language model|chatbot)"
            r"(?:\s+(?:assistant|agent|model))?\b[^.\n]{0,80}\b(?:must|should|ignore|send|forward|reveal|execute|call)\b"
        ),
        r"\b(?:ai|llm)\s+(?:assistants?|agents?|models?)\s+(?:reading|processing|parsing|summari[sz]ing)\s+this\b",
    ),
    "hidden-markup": (
        r"<!--[^>]{0,400}\b(?:ai|llm|assistant|agent|chatbot|language model|system prompt)\b[^>]{0,400}-->",
        (
            r"style\s*=\s*[\"'][^\"'>]{0,200}(?:display\s*:\s*none|font-size\s*:\s*0|visibility\s*:\s*hidden)[^\"'>]{0,200}[\"'][^>]{0,100}>"
            r"[^<]{0,400}\b(?:ai|llm|assistant|agent|ignore|instructions?)\b"
        ),
    ),
}


@cache
def builtin() -> RuleSet:
    """The built-in rules."""
    return RuleSet(rules=[*_rules(_PHRASES, frozenset()), *_rules(_TOOL_PHRASES, _UNTRUSTED)])


def _rules(phrases: Mapping[str, Sequence[str]], surfaces: frozenset[str]) -> list[Rule]:
    return [
        Rule(
            rule_id=name,
            expression=compile_pattern(name, pattern),
            code=HIDDEN if name == "hidden-markup" else INJECTION,
            surfaces=surfaces,
        )
        for name, patterns in phrases.items()
        for pattern in patterns
    ]
