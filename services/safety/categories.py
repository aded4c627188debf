"""Names of the hazards, as Llama Stack's clients know them."""

from collections.abc import Mapping

HAZARDS: Mapping[str, str] = {
    "S1": "Violent Crimes",
    "S2": "Non-Violent Crimes",
    "S3": "Sex Crimes",
    "S4": "Child Exploitation",
    "S5": "Defamation",
    "S6": "Specialized Advice",
    "S7": "Privacy",
    "S8": "Intellectual Property",
    "S9": "Indiscriminate Weapons",
    "S10": "Hate",
    "S11": "Self-Harm",
    "S12": "Sexual Content",
    "S13": "Elections",
    "S14": "Code Interpreter Abuse",
}
"""By code; the names are Llama Stack's (keys of `categories` in its moderation answers)."""


def hazard_name(code: str) -> str:
    """The name of a code; codes without one, such as those of rules, name themselves."""
    return HAZARDS.get(code, code)
