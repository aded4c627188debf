"""Conversion under kills and races, on the real packaged model so that it lasts long enough to be interrupted."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from services.llama.checkpoint import prepare, weights_hash

ROOT = Path(__file__).parents[2]
CONVERT = (
    "import sys; from pathlib import Path\n"
    "from services.llama.checkpoint import prepare\n"
    "print(prepare(Path(sys.argv[1]), cache_dir=Path(sys.argv[2])))\n"
)
PATIENCE = 60.0  # seconds until a condition that does not come true fails the test


def _start(gguf: Path, cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CONVERT, gguf, cache],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _converted(cache: Path) -> list[Path]:
    return [path for path in cache.glob("*-v*") if path.is_dir()]


def test_killed_conversion_leaves_no_half_folder_and_the_next_one_works(
    smollm2_gguf: Path, smollm2: Path, tmp_path: Path
) -> None:
    process = _start(smollm2_gguf, tmp_path)
    end = time.monotonic() + PATIENCE
    while not any(path.stat().st_size for path in tmp_path.glob("*.partial/model.safetensors")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert [path.suffix for path in _converted(tmp_path)] == [".partial"]
    prepared = prepare(smollm2_gguf, cache_dir=tmp_path)
    assert _converted(tmp_path) == [prepared]
    _same_files(prepared, smollm2)


def test_concurrent_conversions_agree_on_one_whole_folder(smollm2_gguf: Path, smollm2: Path, tmp_path: Path) -> None:
    processes = [_start(smollm2_gguf, tmp_path) for _ in range(3)]
    outputs = [process.communicate(timeout=PATIENCE) for process in processes]
    assert {error for _, error in outputs} == {""}
    (prepared,) = _converted(tmp_path)
    assert {output.strip() for output, _ in outputs} == {str(prepared)}
    _same_files(prepared, smollm2)


def test_remains_of_another_file_s_killed_conversion_are_swept(smollm2_gguf: Path, tmp_path: Path) -> None:
    remains = tmp_path / "0123-v1.partial"
    remains.mkdir()
    (remains / "model.safetensors").write_bytes(b"half")
    prepare(smollm2_gguf, cache_dir=tmp_path)
    assert not remains.exists()


def test_second_start_converts_nothing(smollm2_gguf: Path, smollm2: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in smollm2.iterdir()}
    assert prepare(smollm2_gguf, cache_dir=smollm2.parent) == smollm2
    assert {path: path.stat().st_mtime_ns for path in smollm2.iterdir()} == before


def test_unwritable_cache_is_an_error_of_the_system(smollm2_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        prepare(smollm2_gguf, cache_dir=tmp_path / "file")


def _same_files(one: Path, other: Path) -> None:
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in other.iterdir())
    for path in one.iterdir():
        assert path.read_bytes() == (other / path.name).read_bytes()


def test_the_identity_of_weights_follows_their_bytes_and_not_their_place(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for name, content in (("a", b"one"), ("b", b"one"), ("c", b"two")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(content)
    one, same, other = (weights_hash(tmp_path / name, cache_dir=cache) for name in "abc")
    assert one == same
    assert one != other
    (tmp_path / "b" / "model-2.safetensors").write_bytes(b"more")
    assert weights_hash(tmp_path / "b", cache_dir=cache) != same
    assert one.startswith("sha256:")


def test_a_converted_files_identity_is_that_of_the_file(smollm2: Path) -> None:
    assert weights_hash(smollm2, cache_dir=smollm2.parent) == f"gguf:{smollm2.name.partition('-')[0]}"
