"""How keys look: `lsk_<id>_<random>`, of which everything but the random part may be seen."""

import hashlib
import re
import secrets
from dataclasses import dataclass, field

START = "lsk_"
_ID_BYTES = 8
_RANDOM_BYTES = 32
_SECRET = re.compile(r"lsk_([0-9a-f]{16})_[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Secret:
    """A key in its bearer's hands."""

    key_id: str
    """Its id, which may be seen."""
    text: str = field(repr=False)
    """All of it."""

    @property
    def digest(self) -> bytes:
        """What is kept of it: the random part has 256 bits, so no slow hash is needed."""
        return hashlib.sha256(self.text.encode()).digest()


def make() -> Secret:
    """A new one."""
    key_id = secrets.token_hex(_ID_BYTES)
    return Secret(key_id=key_id, text=f"{prefix_of(key_id)}_{secrets.token_hex(_RANDOM_BYTES)}")


def parse(text: str) -> Secret | None:
    """A bearer's text as a key; None where it has not the form of one."""
    found = _SECRET.fullmatch(text)
    return Secret(key_id=found[1], text=text) if found else None


def prefix_of(key_id: str) -> str:
    """The part by which people recognise a key."""
    return f"{START}{key_id}"
