"""Messages as the JSON of Llama Stack and OpenAI clients, and back.

`codec.py` walks a message by its descriptor, as the protobuf JSON mapping does, with the names and rules of the REST
contract: lower-case enums, integers as numbers, nulls where a client expects them. `shapes.py` says which shapes
differ: unions with a tag are rows of a table; `adapters.py` has one function each way for the unions without.
"""

from services.gateway.jsonmap.codec import Codec
from services.gateway.jsonmap.decoder import Reading
from services.gateway.jsonmap.standard import STANDARD

__all__ = ["STANDARD", "Codec", "Reading"]
