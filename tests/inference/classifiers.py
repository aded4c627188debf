"""Small random classifiers in Hugging Face folders."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

DEBERTA = {
    "vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 64, "relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"],
    "share_att_key": True, "norm_rel_ebd": "layer_norm", "position_biased_input": False, "type_vocab_size": 0,
    "layer_norm_eps": 1e-7, "initializer_range": 0.3,
}  # fmt: skip
BERT = {
    "vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 64, "initializer_range": 0.3,
}  # fmt: skip


def bytes_tokenizer(folder: Path) -> None:
    """A tokenizer of bytes with [CLS] and [SEP] around a text, or around and between two."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *letters, "[MASK]", "[unused0]", "[unused1]"]
    vocabulary = {name: index for index, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def deberta_folder(folder: Path, *, labels: int = 3, seed: int = 1, **changes: Any) -> Path:
    """A random DeBERTa classifier that reads 512 bytes at once, unless told otherwise."""
    torch.manual_seed(seed)
    settings = {**DEBERTA, "max_position_embeddings": 512, **changes}
    config = transformers.DebertaV2Config(**settings, num_labels=labels)
    transformers.DebertaV2ForSequenceClassification(config).save_pretrained(folder)
    bytes_tokenizer(folder)
    return folder


def bert_folder(folder: Path, *, labels: int = 3, seed: int = 1, **changes: Any) -> Path:
    """A random BERT classifier."""
    torch.manual_seed(seed)
    transformers.BertForSequenceClassification(
        transformers.BertConfig(**{**BERT, **changes}, num_labels=labels)
    ).save_pretrained(folder)
    bytes_tokenizer(folder)
    return folder


def change_config(folder: Path, **changes: Any) -> None:
    """Overwrite settings of config.json; None takes one out."""
    file = folder / "config.json"
    merged = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in merged.items() if value is not None}))


def late_interaction_folder(folder: Path, *, settings: dict[str, Any] | None = None, dim: int = 8) -> Path:
    """A random model of late interaction in the form of ColBERT's authors."""
    torch.manual_seed(3)
    config = transformers.BertConfig(**BERT, architectures=["HF_ColBERT"])
    bert = transformers.BertModel(config, add_pooling_layer=False)
    tensors = {f"bert.{name}": tensor.contiguous() for name, tensor in bert.state_dict().items()}
    save_file({**tensors, "linear.weight": torch.randn(dim, config.hidden_size)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**config.to_dict(), "architectures": ["HF_ColBERT"]}))
    bytes_tokenizer(folder)
    if settings is not None:
        (folder / "artifact.metadata").write_text(json.dumps(settings))
    return folder
