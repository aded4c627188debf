"""Metadata of a request, a `Struct`, as plain values."""

from typing import Any

from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

from stack_client.content import plain
from stack_client.errors import InvalidArgumentError


def metadata_of(message: Struct, *, field: str = "metadata") -> dict[str, Any]:
    """Metadata as a plain object.

    Args:
        message: Of a request.
        field: Its name there, for errors.

    Raises:
        InvalidArgumentError: If it holds NaN or infinity, which no JSON has, or a value that says nothing.
    """
    try:
        values = plain(json_format.MessageToDict(message))
    except (json_format.Error, ValueError) as error:
        raise InvalidArgumentError(f"{field}: only finite numbers are JSON", field=field) from error
    assert isinstance(values, dict)
    return values


__all__ = ["metadata_of"]
