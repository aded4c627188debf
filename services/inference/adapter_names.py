"""How adapters are addressed: `base@name`, a model id like any other."""

from stack_client.errors import InvalidArgumentError

SEPARATOR = "@"


def split_adapter(model_id: str) -> tuple[str, str] | None:
    """Base and name of an adapter's model id; None when it is a model of its own.

    Raises:
        InvalidArgumentError: If one of the two is empty, or the base would be an adapter itself.
    """
    base, separator, name = model_id.partition(SEPARATOR)
    if not separator:
        return None
    if not base or not name or SEPARATOR in name:
        message = f"model_id {model_id!r}: an adapter is named base{SEPARATOR}name, for example smollm2-135m@polite"
        raise InvalidArgumentError(message, field="model_id")
    return base, name
