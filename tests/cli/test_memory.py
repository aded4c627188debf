"""`stack memory`: banks are made, filled, searched, shown and deleted from the command line."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "whales.md").write_text("# Whales\n\nWhales are mammals of the sea. They sing.\n")
    (tmp_path / "docs" / "bread.txt").write_text("Bread is baked from flour, water and salt.\n")
    return tmp_path


def test_a_bank_is_filled_searched_shown_and_deleted(command: Command, folder: Path) -> None:
    made = command("memory", "create", "cli-docs")
    assert (made.returncode, made.stdout) == (0, "cli-docs is a vector bank, embedded by words\n")
    loaded = command("memory", "ingest", "cli-docs", str(folder / "docs"))
    assert loaded.stdout == "2 documents in cli-docs, 0 of them unchanged; 2 chunks written\n", loaded.stderr
    again = command("memory", "ingest", "cli-docs", str(folder / "docs" / "*.md"), "--json")
    assert json.loads(again.stdout)["loaded"] == 1
    found = command("memory", "search", "cli-docs", "Do", "whales", "sing?", "-k", "1", "--explain")
    assert found.returncode == 0, found.stderr
    assert "1. whales.md, characters 0 to" in found.stdout
    assert "They sing." in found.stdout
    assert "keyword: rank 1" in found.stdout
    (hit,) = json.loads(command("memory", "search", "cli-docs", "baked bread", "-k", "1", "--json").stdout)
    assert [hit["text"][start:end] for start, end in hit["highlights"]] == ["Bread", "baked"]
    assert command("memory", "show", "cli-docs", "bread.txt").stdout.startswith("Bread is baked")
    assert "whales.md\ttext/markdown\t1\t" in command("memory", "list", "cli-docs").stdout
    assert command("memory", "delete", "cli-docs", "bread.txt").stdout == "1 documents are gone\n"
    assert command("memory", "delete", "cli-docs").stdout == "cli-docs is gone\n"
    assert "cli-docs" not in command("memory").stdout


def test_files_that_cannot_be_read_are_named_and_the_others_loaded(command: Command, folder: Path) -> None:
    (folder / "docs" / "broken.pdf").write_bytes(b"%PDF-1.4 nothing")
    done = command("memory", "ingest", "cli-broken", str(folder / "docs"))
    assert done.returncode == 3
    assert done.stdout.startswith("2 documents in cli-broken")
    assert done.stderr.startswith("broken.pdf: ")
    assert command("memory", "delete", "cli-broken").returncode == 0


def test_values_by_key_are_listed_and_shown(command: Command) -> None:
    assert command("memory", "create", "cli-values", "--kind", "keyvalue").returncode == 0
    assert command("memory", "list", "cli-values").stdout == ""
    missing = command("memory", "show", "cli-values", "colour")
    assert (missing.returncode, "no key 'colour'" in missing.stderr) == (1, True)
    assert command("memory", "delete", "cli-values").returncode == 0


def test_mistakes_end_in_one_line_that_names_the_way_out(command: Command, folder: Path) -> None:
    for arguments, words in (
        (["memory", "search", "nowhere", "x"], "no memory bank 'nowhere'"),
        (["memory", "ingest", "cli-x", str(folder / "*.nothing")], "no file matches"),
        (["memory", "create", "cli-y", "--model", "nobody"], "nobody"),
        (["memory", "create", "cli-z", "--provider", "nobody"], "nobody"),
    ):
        done = command(*arguments)
        assert done.returncode == 1, done.stdout
        assert done.stderr.startswith("error: ")
        assert words in done.stderr
        assert len(done.stderr.splitlines()) == 1
