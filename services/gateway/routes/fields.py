"""Reading bodies whose shape is not that of a message: every member is taken by name, what is left is refused."""

from collections.abc import Mapping, Sequence
from typing import Any

from services.gateway.jsonmap.values import shown, text, wrong
from stack_client.errors import InvalidArgumentError


class FieldReader:
    """The members of one object.

    Args:
        value: The object; null members count as absent.
        path: Where it stands, for errors.
    """

    def __init__(self, value: Any, *, path: str = "") -> None:  # noqa: ANN401
        if not isinstance(value, dict):
            raise wrong(path, "an object", value)
        self._rest = {key: item for key, item in value.items() if item is not None}
        self._known: list[str] = []
        self._path = path

    def at(self, name: str) -> str:
        """The path of a member."""
        return f"{self._path}.{name}" if self._path else name

    def take(self, name: str) -> Any:  # noqa: ANN401
        """A member as it is, None where it is absent."""
        self._known.append(name)
        return self._rest.pop(name, None)

    def drop(self, *names: str) -> None:
        """Members that nothing hangs on."""
        for name in names:
            self.take(name)

    def text(self, name: str, *, required: bool = False) -> str:
        """A string, empty where it is absent.

        Raises:
            InvalidArgumentError: It is none, or absent and required.
        """
        value = self.take(name)
        if value is None:
            if required:
                raise InvalidArgumentError(f"{self.at(name)}: missing", field=self.at(name), reason="MISSING_FIELD")
            return ""
        if not isinstance(value, str):
            raise wrong(self.at(name), "a string", value)
        if required and not value:
            raise InvalidArgumentError(f"{self.at(name)}: empty", field=self.at(name), reason="MISSING_FIELD")
        return text(value, path=self.at(name))

    def flag(self, name: str) -> bool | None:
        """True, false, or None where it is absent.

        Raises:
            InvalidArgumentError: It is something else.
        """
        value = self.take(name)
        if value is not None and not isinstance(value, bool):
            raise wrong(self.at(name), "true or false", value)
        return value

    def whole(self, name: str, *, least: int, most: int = 2**31 - 1) -> int | None:
        """A whole number within bounds.

        Raises:
            InvalidArgumentError: It is none, or out of range.
        """
        value = self.take(name)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong(self.at(name), "a whole number", value)
        if not least <= value <= most:
            message = f"{self.at(name)}: {shown(value)} is out of range; give {least} to {most}"
            raise InvalidArgumentError(message, field=self.at(name))
        return value

    def number(self, name: str, *, least: float, most: float) -> float | None:
        """A number within bounds.

        Raises:
            InvalidArgumentError: It is none, or out of range.
        """
        value = self.take(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise wrong(self.at(name), "a number", value)
        if not least <= value <= most:
            message = f"{self.at(name)}: {shown(value)} is out of range; give {least:g} to {most:g}"
            raise InvalidArgumentError(message, field=self.at(name))
        return float(value)

    def choice(self, name: str, names: Sequence[str]) -> str:
        """One of some strings, empty where it is absent.

        Raises:
            InvalidArgumentError: It is none of them.
        """
        value = self.take(name)
        if value is None:
            return ""
        if value not in names:
            message = f"{self.at(name)}: {shown(value)} is none of {', '.join(names)}"
            raise InvalidArgumentError(message, field=self.at(name))
        return str(value)

    def items(self, name: str, *, required: bool = False) -> list[Any]:
        """A list, empty where it is absent.

        Raises:
            InvalidArgumentError: It is none, or absent or empty and required.
        """
        value = self.take(name)
        if value is None:
            value = []
        if not isinstance(value, list):
            raise wrong(self.at(name), "a list", value)
        if required and not value:
            message = f"{self.at(name)}: missing or empty"
            raise InvalidArgumentError(message, field=self.at(name), reason="MISSING_FIELD")
        return value

    def texts(self, name: str, *, most: int) -> list[str]:
        """A string or a list of strings.

        Raises:
            InvalidArgumentError: It is neither, or too long.
        """
        value = self.take(name)
        entries = [] if value is None else value if isinstance(value, list) else [value]
        if len(entries) > most:
            raise InvalidArgumentError(f"{self.at(name)}: give at most {most}", field=self.at(name))
        for index, entry in enumerate(entries):
            if not isinstance(entry, str):
                raise wrong(f"{self.at(name)}[{index}]", "a string", entry)
            text(entry, path=self.at(name))
        return entries

    def mapping(self, name: str) -> Mapping[str, Any] | None:
        """An object, None where it is absent.

        Raises:
            InvalidArgumentError: It is something else.
        """
        value = self.take(name)
        if value is not None and not isinstance(value, dict):
            raise wrong(self.at(name), "an object", value)
        return value

    def finish(self) -> None:
        """Refuse what was not taken.

        Raises:
            InvalidArgumentError: Something is left.
        """
        for name in self._rest:
            known = ", ".join(sorted(set(self._known)))
            message = f"{self.at(name)}: no such field here; there are: {known}"
            raise InvalidArgumentError(message, field=self.at(name))
