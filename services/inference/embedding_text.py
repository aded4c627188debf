"""The text side of embedding models: token ids within the model's window."""

import json
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from llamastack import v1
from stack_client.errors import InvalidArgumentError


@dataclass(frozen=True, kw_only=True)
class EmbeddingModel:
    """The text side of an embedding model whose weights the engine holds."""

    tokenizer: Tokenizer
    context: int
    """Tokens read of one text, special tokens included."""


class EmbeddingEncoder:
    """Texts to token ids within the model's window."""

    def __init__(self, model: EmbeddingModel, request: v1.EmbedRequest) -> None:
        self._model = model
        self._truncation = request.text_truncation

    def __call__(self, texts: list[str]) -> list[list[int]]:
        """Token ids with the special tokens of the model; too long texts are cut or refused as asked."""
        limit = self._model.context
        result = []
        for index, encoding in enumerate(self._model.tokenizer.encode_batch(texts)):
            ids = encoding.ids
            if len(ids) > limit:
                match self._truncation:
                    case v1.TEXT_TRUNCATION_END:
                        ids = [*ids[: limit - 1], ids[-1]]
                    case v1.TEXT_TRUNCATION_START:
                        ids = [ids[0], *ids[len(ids) - limit + 1 :]]
                    case _:
                        raise InvalidArgumentError(
                            f"contents[{index}] has {len(ids)} tokens, the model reads {limit}; "
                            "shorten it or set text_truncation to start or end",
                            reason="CONTEXT_LENGTH_EXCEEDED",
                            field=f"contents[{index}]",
                        )
            result.append(ids)
        return result


def embedding_model(folder: Path) -> EmbeddingModel:
    """Tokenizer and window of a sentence-transformers folder."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    sizes = json.loads((folder / "sentence_bert_config.json").read_text())
    return EmbeddingModel(tokenizer=tokenizer, context=sizes["max_seq_length"])
