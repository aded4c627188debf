"""Where a model's files are: a path of this machine, a package, or the Hugging Face hub and its local cache."""

import json
import os
import re
from pathlib import Path
from typing import Any

from services.inference.packaged import find_packaged
from services.inference.provider import Report
from stack_client.errors import InvalidArgumentError, UnavailableError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
# What our loaders read; never code, pickles or copies of the weights in other formats.
_WANTED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.metadata")
_UNWANTED = ("*/*", "consolidated*")
_INSTALL = "pip install 'llama-stack-mesh[inference]'"


def locate(name: str, *, report: Report) -> Path:
    """The folder or file of a provider's model name; may take as long as a download.

    Args:
        name: `packaged:NAME`, a path, or a hub id, `OWNER/NAME`, when there is no such path.
        report: Told before a download begins.

    Raises:
        InvalidArgumentError: If there is none, or it may not be read; says what to do.
        UnavailableError: If the hub cannot be reached.
    """
    try:
        path = find_packaged(name.removeprefix("packaged:")) if name.startswith("packaged:") else Path(name)
    except FileNotFoundError as error:
        raise InvalidArgumentError(str(error), field="provider_model_id") from error
    try:
        found = path.exists()
    except OSError:  # for example a name that is longer than any file's
        found = False
    if found:
        return path
    if not _HUB_ID.fullmatch(name):
        message = f"there is no file or folder {name!r} on this inference node"
        raise InvalidArgumentError(message, field="provider_model_id")
    return _from_hub(name, report=report)


def _from_hub(name: str, *, report: Report) -> Path:
    try:
        import huggingface_hub  # noqa: PLC0415 - slow to import, and only hub ids need it
        from huggingface_hub import errors  # noqa: PLC0415
    except ImportError as error:
        message = f"there is no folder {name!r} on this inference node; to take it from the hub: {_INSTALL}"
        raise InvalidArgumentError(message, field="provider_model_id") from error
    options: dict[str, Any] = {
        "allow_patterns": list(_WANTED),
        "ignore_patterns": list(_UNWANTED),
        "cache_dir": os.environ.get("HF_HUB_CACHE"),  # the library's own variables: caches are shared with its tools
    }
    try:
        cached = Path(huggingface_hub.snapshot_download(name, local_files_only=True, **options))
    except errors.LocalEntryNotFoundError:
        cached = None
    if cached is not None and _is_whole(cached):
        return cached
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        state = "only in part" if cached else "not"
        message = (
            f"{name!r} is no path of this inference node and {state} in its hub cache, and HF_HUB_OFFLINE forbids the "
            f"network: unset it, or fetch the model there once with `hf download {name}`"
        )
        raise InvalidArgumentError(message, field="provider_model_id")
    report(f"downloading {name} from the Hugging Face hub")
    try:
        folder = Path(huggingface_hub.snapshot_download(name, **options))
    except errors.GatedRepoError as error:
        message = f"access to {name!r} is restricted: accept its licence on its page, then set HF_TOKEN for this node"
        raise InvalidArgumentError(message, field="provider_model_id") from error
    except errors.RepositoryNotFoundError as error:
        message = (
            f"{name!r} is neither a path of this inference node nor a model of the hub that it may read (HF_TOKEN)"
        )
        raise InvalidArgumentError(message, field="provider_model_id") from error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) as error:
        raise UnavailableError(f"{name!r} could not be fetched from the hub: {error}; register it again") from error
    if not _is_whole(folder):
        message = f"{name!r} has no safetensors weights with a config.json on the hub; convert it to that format"
        raise InvalidArgumentError(message, field="provider_model_id")
    return folder


def _is_whole(folder: Path) -> bool:
    """Whether a snapshot has its configuration and all of its weights; a download may have been cut off."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        files = set(json.loads(index.read_text()).get("weight_map", {"": index.name}).values())
        weights = all((folder / str(file)).exists() for file in files)
    else:
        weights = any(folder.glob("*.safetensors"))
    return weights and any((folder / name).exists() for name in ("config.json", "adapter_config.json"))
