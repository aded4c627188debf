"""Which format a model's weights are held in."""

from typing import Literal, cast, get_args

from llamastack import v1
from services.llama.config import Quantisation
from stack_client.errors import InvalidArgumentError, UnsupportedError

FIELD = "metadata.quantisation"


Wanted = Literal["auto"] | Quantisation


def choose_quantisation(model: v1.Model, *, default: Wanted, device: str) -> Wanted:
    """The format that the model's metadata asks for, else the provider's; encoders keep their numbers.

    Raises:
        InvalidArgumentError: If there is no such format.
        UnsupportedError: If the model or the device cannot have it.
    """
    given = dict(model.metadata.items()).get("quantisation")
    if model.model_type != v1.MODEL_TYPE_LLM:
        if given is not None:
            raise UnsupportedError(f"{FIELD}: only text models are quantised", field=FIELD)
        return "none"
    wanted = default if given is None else given
    if given is not None and given not in get_args(Quantisation):
        known = ", ".join(get_args(Quantisation))
        raise InvalidArgumentError(f"{FIELD}: {given!r} is none of {known}", field=FIELD)
    if wanted == "fp8" and device == "cpu":
        message = "quantisation fp8 needs a GPU that multiplies it; on a CPU take int8 or int4"
        raise UnsupportedError(message, field=FIELD)
    return cast("Wanted", wanted)
