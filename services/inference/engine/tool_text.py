"""The packaged detector of commands in tool text: its 8-bit ONNX file made into a float classifier's folder, once.

Its own 8-bit arithmetic scores a text differently beside other texts, since it quantises activations per batch. Its
weights in float do not, and are as accurate.
"""

import hashlib
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from services.inference.engine.classifier import MEAN_POOLED_BERT
from services.inference.engine.onnx_file import read_weights
from services.llama.checkpoint.build_once import build_once

ONNX_FILE = "model_quantized.onnx"
SHA256 = {
    ONNX_FILE: "3d4a1ba798c395c140202992c50e6c8de02fb1b9bd5aba6540848705b9c1e92c",
    "tokenizer.json": "0d3aef594edd5f9b53e7f814277a9171dc70ff93eb66bda6e01f7aa53997d963",
}
"""Of the files in stackone-defender 0.9.4, model `minilm-multihead-v5`."""
_VERSION = 1
# Its windows are 254 tokens and two special ones, 206 apart: as its authors use it.
_CONFIG = {
    "architectures": [MEAN_POOLED_BERT],
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "id2label": {"0": "main", "1": "aux"},
    "problem_type": "multi_label_classification",
    "window_overlap": 48,
}
_TOKENIZER_CONFIG = {"model_max_length": 256}


def prepare_classifier(path: Path, *, cache_dir: Path) -> Path:
    """The folder to load a classifier from: itself, or a converted copy where it is the packaged detector.

    Raises:
        ValueError: If it is no folder, or a file of the detector is not the one that is known.
    """
    if not path.is_dir():
        raise ValueError(f"{path}: a classifier or rerank model is a Hugging Face folder, not a file")
    if not (path / ONNX_FILE).exists() or list(path.glob("*.safetensors")):
        return path
    for name, known in SHA256.items():
        found = hashlib.sha256((path / name).read_bytes()).hexdigest()
        if found != known:
            message = f"{path / name}: SHA-256 is {found}, not {known}; install stackone-defender 0.9.4 again"
            raise ValueError(message)
    target = cache_dir / f"tool-text-{SHA256[ONNX_FILE][:32]}-v{_VERSION}"
    build_once(target, lambda partial: _convert(path, partial))
    return target


def _convert(source: Path, folder: Path) -> None:
    """Write config, tokenizer and float weights."""
    folder.mkdir()
    weights = read_weights(source / ONNX_FILE)
    heads = [weights.pop(f"{head}_head.{part}") for part in ("weight", "bias") for head in ("main", "aux")]
    tensors = {name.replace("base.", "bert.", 1): torch.from_numpy(array.copy()) for name, array in weights.items()}
    tensors["classifier.weight"] = torch.cat([torch.from_numpy(array.copy()) for array in heads[:2]])
    tensors["classifier.bias"] = torch.cat([torch.from_numpy(array.copy()) for array in heads[2:]])
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(_CONFIG, indent=1))
    (folder / "tokenizer_config.json").write_text(json.dumps(_TOKENIZER_CONFIG))
    shutil.copyfile(source / "tokenizer.json", folder / "tokenizer.json")
