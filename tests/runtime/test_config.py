"""Configuration is strict and names what is wrong."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from services.runtime.config import ConfigError, read_config, read_stack


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: int = 1
    rate: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    mode: Literal["fast", "safe"] = "safe"
    inner: Inner = field(default_factory=Inner)
    many: list[Inner] = field(default_factory=list)
    by_name: dict[str, Inner] = field(default_factory=dict)
    folder: Path | None = None
    enabled: bool = False
    pair: tuple[str, ...] = ()


def written(folder: Path, text: str) -> Path:
    path = folder / "stack.yaml"
    path.write_text(text)
    return path


def test_every_kind_of_value_is_read(tmp_path: Path) -> None:
    text = (
        "name: x\nmode: fast\ninner: {size: 2, rate: 1}\nmany: [{size: 3}]\nby_name: {a: {size: 4}}\n"
        "folder: sub\nenabled: true\npair: [a, b]"
    )
    assert read_config(Outer, written(tmp_path, text)) == Outer(
        name="x",
        mode="fast",
        inner=Inner(size=2, rate=1.0),
        many=[Inner(size=3)],
        by_name={"a": Inner(size=4)},
        folder=tmp_path / "sub",
        enabled=True,
        pair=("a", "b"),
    )


@pytest.mark.parametrize(
    ("text", "key", "problem"),
    [
        ("name: x\ninner: {sise: 2}", "inner.sise", 'did you mean "size"?'),
        ("name: x\nmany: [{}, {sise: 2}]", "many[1].sise", "unknown key"),
        ("name: x\nby_name: {a: {size: big}}", "by_name.a.size", "expected a whole number, found 'big'"),
        ("name: x\nmode: slow", "mode", "expected one of fast, safe"),
        ("name: 1", "name", "expected text"),
        ("name: x\ninner: {size: true}", "inner.size", "expected a whole number"),
        ("name: x\nenabled: 1", "enabled", "expected true or false"),
        ("name: x\ninner: [1]", "inner", "expected keys and values, found a list"),
        ("name: x\nmany: {}", "many", "expected a list"),
        ("mode: fast", "name", "missing"),
    ],
)
def test_a_wrong_key_or_value_names_file_and_key(tmp_path: Path, text: str, key: str, problem: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read_config(Outer, path)
    assert str(caught.value).startswith(f"{path}: {key}: ")
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("runtme: {}", 'runtme: unknown key; did you mean "runtime"?'),
        ("runtime: {hosst: x}", 'runtime.hosst: unknown key; did you mean "host"?'),
        ("runtime: {host: 0.0.0.0}", "runtime.host: "),
        ("runtime: {tcp: false}", "runtime.tcp: "),
        ("inference: 3", "inference: expected keys and values"),
        ("- 1", "expected keys and values at the top"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_wrong_stack_file_names_file_and_key(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read_stack(path)
    assert str(caught.value).startswith(str(path))
    assert said in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read"):
        read_stack(tmp_path / "nowhere.yaml")


def test_a_service_reads_its_own_section_and_errors_name_its_keys(tmp_path: Path) -> None:
    path = written(tmp_path, "inference: {name: x}\nagents: {nmae: y}")
    config = read_stack(path)
    assert config.section(Outer, name="inference") == Outer(name="x")
    with pytest.raises(ConfigError, match=r"agents\.nmae: unknown key; did you mean \"name\""):
        config.section(Outer, name="agents")


def test_an_overlay_is_laid_over_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "addresses: {a: 'h:1', b: 'h:2'}\nruntime: {reflection: true, ports: {inference: 1}}")
    config = read_stack(path, overlay={"addresses": {"b": "h:3"}, "runtime": {"ports": {"agents": 2}}})
    assert config.addresses == {"a": "h:1", "b": "h:3"}
    assert config.runtime.reflection
    assert config.runtime.ports == {"inference": 1, "agents": 2}
