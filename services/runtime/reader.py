"""Read YAML or a mapping into frozen dataclasses, strictly: an unknown key or a wrong type names file and key.

@dataclass(frozen=True, kw_only=True)
class TorchConfig:
    batch: int = 16

read_config(TorchConfig, Path("stack.yaml"), at="inference.torch")
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast

import yaml

T = TypeVar("T")


class ConfigError(Exception):
    """A configuration that cannot be used; the message names file, key and what to do."""


def load_yaml(path: Path) -> dict[str, Any]:
    """The top-level mapping of a YAML file; an empty file is an empty mapping."""
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: expected keys and values at the top, found {_kind(loaded)}")
    return {str(key): value for key, value in loaded.items()}


def read_config(
    cls: type[T], source: Path | Mapping[str, Any], *, file: Path | str = "configuration", at: str = ""
) -> T:
    """Build `cls` from a YAML file or from the part of one.

    Args:
        cls: A dataclass; nested dataclasses, lists, tuples, dicts, unions, Literal, Path and scalars are checked.
        source: A YAML file, or a mapping that was read from `file`.
        file: Where the mapping comes from, for messages; relative paths in values are taken from its folder.
        at: Key path of the mapping inside the file, for messages.

    Raises:
        ConfigError: A key is unknown or missing, or a value has the wrong type.
    """
    if isinstance(source, Path):
        file, source = source, load_yaml(source)
    return cast("T", _Reader(file=file).dataclass(cls, source, at=at))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Reader:
    """Converts values of one file."""

    file: Path | str

    def fail(self, at: str, problem: str) -> ConfigError:
        return ConfigError(f"{self.file}: {at or 'top level'}: {problem}")

    def dataclass(self, cls: type[Any], value: object, *, at: str) -> object:
        if not isinstance(value, Mapping):
            raise self.fail(at, f"expected keys and values, found {_kind(value)}")
        fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
        hints = typing.get_type_hints(cls)
        for key in value:
            if key not in fields:
                raise self.fail(_join(at, str(key)), f"unknown key{suggestion(str(key), fields)}")
        for name, field in fields.items():
            required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            if required and name not in value:
                raise self.fail(_join(at, name), "missing; it has no default")
        converted = {name: self.convert(hints[name], item, at=_join(at, name)) for name, item in value.items()}
        try:
            return cls(**converted)
        except ValueError as error:  # from `__post_init__`: a value out of range, which names its key
            raise ConfigError(f"{self.file}: {_join(at, str(error))}") from error

    def convert(  # noqa: PLR0911 - one exit per kind of type
        self,
        hint: Any,  # noqa: ANN401 - a type hint has no type
        value: object,
        *,
        at: str,
    ) -> object:
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if hint is Any or hint is object:
            return value
        if dataclasses.is_dataclass(hint):
            return self.dataclass(cast("type[Any]", hint), value, at=at)
        if origin is Literal:
            if value not in arguments:
                raise self.fail(at, f"expected one of {', '.join(map(str, arguments))}, found {value!r}")
            return value
        if origin in {Union, types.UnionType}:
            return self.union(arguments, value, at=at)
        if origin in {list, tuple}:
            return self.sequence(origin, arguments, value, at=at)
        if isinstance(origin, type) and issubclass(origin, Mapping):
            if not isinstance(value, Mapping):
                raise self.fail(at, f"expected keys and values, found {_kind(value)}")
            return {str(key): self.convert(arguments[1], item, at=_join(at, str(key))) for key, item in value.items()}
        return self.scalar(hint, value, at=at)

    def union(self, arguments: tuple[Any, ...], value: object, *, at: str) -> object:
        if value is None and type(None) in arguments:
            return None
        options = [option for option in arguments if option is not type(None)]
        if len(options) == 1:
            return self.convert(options[0], value, at=at)
        problems = []
        for option in options:
            try:
                return self.convert(option, value, at=at)
            except ConfigError as error:
                problems.append(error)
        raise problems[-1]

    def sequence(self, origin: type, arguments: tuple[Any, ...], value: object, *, at: str) -> object:
        if not isinstance(value, list | tuple):
            raise self.fail(at, f"expected a list, found {_kind(value)}")
        return origin(self.convert(arguments[0], item, at=f"{at}[{index}]") for index, item in enumerate(value))

    def scalar(self, hint: type, value: object, *, at: str) -> object:
        if hint is Path and isinstance(value, str):
            path = Path(value).expanduser()
            return path if path.is_absolute() or not isinstance(self.file, Path) else self.file.parent / path
        if hint is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
            raise self.fail(at, f"expected {_NAMES.get(hint, hint.__name__)}, found {_kind(value)}")
        return value


_NAMES: dict[type, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}


def suggestion(key: str, known: typing.Iterable[str]) -> str:
    """`; did you mean "x"?`, or what is known, for the end of a message."""
    names = sorted(known)
    close = difflib.get_close_matches(key, names, n=1)
    if close:
        return f'; did you mean "{close[0]}"?'
    return f"; known here: {', '.join(names)}" if names else "; nothing can be set here"


def _join(at: str, key: str) -> str:
    return f"{at}.{key}" if at else key


def _kind(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "keys and values"
    if isinstance(value, list | tuple):
        return "a list"
    return repr(value)
