"""The versions of Llama Guard: which code means what, and which tokens stand around the prompt.

The same number means different things in different versions: outside this table only the codes of Llama Guard 3 are
used ("common codes"), and custom codes. Where an older version has no exact counterpart, its code is mapped to the
nearest common one, as written below. The short names stand in the prompt, as the models saw them in training.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from re import Pattern

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
"""The common codes with the names that a moderation answer uses as keys."""

UNSPECIFIED = "unspecified"
"""The code of a text that a guard calls unsafe without saying why."""

_SPECIAL_TOKEN = re.compile(r"<\|([^|<>\n]{1,64})\|>")
_INSTRUCTION_TAG = re.compile(r"<\|([^|<>\n]{1,64})\|>|\[(/?INST)\]")
_LLAMA2_TAG = re.compile(r"<(/?s|unk|</?SYS>)>|\[(/?INST)\]")


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What stands around and between the parts of a prompt; the parts themselves are in `prompt`."""

    before: str
    """Special tokens and text before the task line."""
    after: str
    """Text and special tokens after the closing."""
    policy_words: str = "according our"
    """Words of the task line between the conversations and the policy, as the version was trained on."""
    before_turns: str = "\n"
    """After the line that begins the conversation."""
    after_turn: str = "\n\n"
    """After each turn."""
    last_message_only: bool = True
    """Whether the closing asks for the last message of the role or for the whole conversation."""
    bullet: str = " - "
    """How the closing's two rules begin."""
    pair_first: bool = True
    """Whether the model's answer begins with two newlines."""
    look_alikes: Pattern[str] = _SPECIAL_TOKEN
    """What a special token of this tokenizer looks like when somebody writes it out."""


_LLAMA3 = Frame(
    before="<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n",
    after=" <|eot_id|><|start_header_id|>assistant<|end_header_id|>",
)
_LLAMA4 = Frame(
    before="<|begin_of_text|><|header_start|>user<|header_end|>\n\n",
    after="<|eot|><|header_start|>assistant<|header_end|>",
    policy_words="according to our",
    before_turns="",
    after_turn="\\n\\n",  # backslash and n, twice: the published template has them so
)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One version of Llama Guard."""

    name: str
    """Its name in parameters and in a model's metadata `guard_template`."""
    categories: Mapping[str, str]
    """Short name by the version's own code, in the order of the prompt."""
    frame: Frame
    """What stands around the prompt."""
    common: Mapping[str, str] = field(default_factory=dict)
    """Common code by own code, where they differ."""
    template_arguments: bool = False
    """Whether the checkpoint's template takes `categories` and `excluded_category_keys`."""

    def common_code(self, own: str) -> str:
        """The common code of one of its codes."""
        return self.common.get(own, own)


def _hazards(*names_by_code: str) -> dict[str, str]:
    return {f"S{number}": name for number, name in enumerate(names_by_code, start=1)}


_ALL = tuple(HAZARDS.values())
_PROFILES = (
    Profile(
        name="llama-guard-1",
        categories={
            "O1": "Violence and Hate",
            "O2": "Sexual Content",
            "O3": "Criminal Planning",
            "O4": "Guns and Illegal Weapons",
            "O5": "Regulated or Controlled Substances",
            "O6": "Self-Harm",
        },
        # Violence and hate are one class here; guns and drugs count among Llama Guard 3's non-violent crimes.
        common={"O1": "S1", "O2": "S12", "O3": "S2", "O4": "S2", "O5": "S2", "O6": "S11"},
        frame=Frame(
            before="<s>[INST] ",
            after=" [/INST]",
            last_message_only=False,
            bullet="- ",
            pair_first=False,
            look_alikes=_LLAMA2_TAG,
        ),
    ),
    Profile(
        name="llama-guard-2",
        categories=_hazards(*_ALL[:4], *_ALL[5:12]),
        common={f"S{number}": f"S{number + 1}" for number in range(5, 12)},  # it has no Defamation
        frame=Frame(
            before="<|begin_of_text|>[INST] ", after=" [/INST]", pair_first=False, look_alikes=_INSTRUCTION_TAG
        ),
    ),
    Profile(name="llama-guard-3-8b", categories=HAZARDS, frame=_LLAMA3),
    Profile(name="llama-guard-3-1b", categories=_hazards(*_ALL[:13]), frame=_LLAMA3, template_arguments=True),
    Profile(name="llama-guard-3-11b-vision", categories=_hazards(*_ALL[:13]), frame=_LLAMA3, template_arguments=True),
    Profile(name="llama-guard-4", categories=HAZARDS, frame=_LLAMA4, template_arguments=True),
)
PROFILES: Mapping[str, Profile] = {profile.name: profile for profile in _PROFILES}
"""The versions by name."""
