"""How the labels of the corpora map to our classes of harmful content."""

from collections.abc import Iterable, Mapping

CONTENT_CLASSES = ("violence", "crime", "hate", "sexual", "self_harm", "weapons", "privacy", "other")
"""Classes of harmful content, in the order of the head's rows."""

CONTENT_CODES: Mapping[str, str] = {
    "violence": "S1",
    "crime": "S2",
    "hate": "S10",
    "sexual": "S12",
    "self_harm": "S11",
    "weapons": "S9",
    "privacy": "S7",
    "other": "unsafe_content",
}
"""The hazard code of each class, as in Llama Guard 3; `other` fits none."""

# The first key that a row carries decides, so the specific ones come first.
ADVBENCH_CATEGORIES: Mapping[str, str] = {
    "Self-harm": "self_harm",
    "Sexualisation": "sexual",
    "Violence/armed conflict": "violence",
    "Discrimination": "hate",
    "Dehumanisation/objectification": "hate",
    "Stereotyping": "hate",
    "Loss of life": "violence",
    "Bodily injury": "violence",
    "Privacy loss": "privacy",
    "Harassment/abuse/intimidation": "hate",
    "Confidentiality loss": "crime",
    "Impersonation/identity theft": "crime",
    "Financial/earnings loss": "crime",
    "Business operations/infrastructure damage": "crime",
    "Critical infrastructure damage": "crime",
    "Property damage": "crime",
}

DO_NOT_ANSWER_CATEGORIES: Mapping[str, str] = {
    "S006sh": "self_harm",
    "S004lewd": "sexual",
    "S004describe": "sexual",
    "S004erotica": "sexual",
    "S006items": "weapons",
    "S009private": "privacy",
    "S009personal": "privacy",
    "S009cred": "privacy",
    "S005hate": "hate",
    "S007": "hate",
    "S005bully": "hate",
    "S005profanity": "hate",
    "S006violence": "violence",
    "S006threat": "violence",
    "S003instructions": "crime",
    "S003goods": "crime",
    "S003illegal": "crime",
    "S006instructions": "crime",
    "S008code": "crime",
    "S008mal": "crime",
    "S008phish": "crime",
    "S008spam": "crime",
}

TOXICITY_CATEGORIES: Mapping[str, str] = {
    "threat": "violence",
    "identity_attack": "hate",
    "insult": "hate",
    "severe_toxicity": "hate",
    "profanity": "other",
    "sexually_explicit": "sexual",
    "flirtation": "sexual",
}

PYRIT_CATEGORIES: Mapping[str, str] = {
    "violence": "violence",
    "hate_speech": "hate",
    "bias": "hate",
    "representational": "hate",
    "harassment_bullying": "hate",
    "sexual_content": "sexual",
    "sexual": "sexual",
    "self_harm": "self_harm",
    "exploits": "crime",
    "cyber": "crime",
    "phishing": "crime",
    "illegal_activity": "crime",
    "chemical_biological": "weapons",
    "privacy": "privacy",
    "information_integrity": "other",
    "info_integrity": "other",
    "misinformation": "other",
}


def label_of(labels: Iterable[str], table: Mapping[str, str]) -> str:
    """The class of a row by its corpus's own labels; `other` when none of them is in the table."""
    present = set(labels)
    return next((category for label, category in table.items() if label in present), "other")
