"""What can go wrong while a Llama checkpoint is read or a conversation is laid out."""


class LlamaError(ValueError):
    """Root of this package's errors; each message names the thing at fault and the way out."""


class ConfigError(LlamaError):
    """A model configuration asks for something this package does not do, or lacks a field."""


class CheckpointError(LlamaError):
    """A checkpoint is incomplete, truncated, misshapen or of an unknown kind; names the tensor and the file."""


class TokenizerError(LlamaError):
    """A tokenizer file cannot be read, is of an unsupported kind, or lacks a token that was asked for."""


class ChatFormatError(LlamaError):
    """A conversation cannot be laid out as tokens: the template refused it, or a message is malformed."""


class AdapterError(LlamaError):
    """A LoRA adapter cannot be read, does not fit its base, or asks for what is not served; names file and key."""
