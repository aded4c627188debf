"""The weights in an ONNX file, read without the ONNX package: the few fields of its schema that hold them.

Source: onnx/onnx, `onnx.proto3` (field numbers) and `docs/Operators.md` (MatMulInteger, DequantizeLinear).
"""

from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

_DTYPES = {1: np.float32, 2: np.uint8, 3: np.int8}  # TensorProto.DataType; others do not occur in what we read
_SCALE, _ZERO_POINT, _QUANTISED = "_scale", "_zero_point", "_quantized"
_Field = descriptor_pb2.FieldDescriptorProto


def read_weights(file: Path) -> dict[str, NDArray[np.float32]]:
    """Weights by name, in fp32: initializers as they are, 8-bit ones multiplied out.

    A matrix that only a product names is called after the product's node: `/base/layer.0/query/MatMul_quant` gives
    `base.layer.0.query.weight`. Matrices of products are transposed to (outputs, inputs), as PyTorch keeps them.

    Raises:
        ValueError: If it is no ONNX file, or holds another kind of number.
    """
    model = _model_class()()
    try:
        model.ParseFromString(file.read_bytes())
    except DecodeError as error:
        raise ValueError(f"{file}: no ONNX file: {error}") from error
    stored = {tensor.name: _array(tensor, file) for tensor in model.graph.initializer}
    weights = {name: array for name, array in stored.items() if array.dtype == np.float32 and not name.endswith(_SCALE)}
    for node in model.graph.node:
        if node.op_type == "MatMulInteger":
            name = node.input[1].removesuffix(_QUANTISED)
            stands_for = name if name.endswith(".weight") else f"{_dotted(node.name)}.weight"
            weights[stands_for] = np.ascontiguousarray(_multiplied(stored, name).T)
        elif node.op_type == "DequantizeLinear" and node.input[1].endswith(_SCALE):
            name = node.input[1].removesuffix(_SCALE)
            weights[name] = _multiplied(stored, name)
    return weights


def _multiplied(stored: dict[str, NDArray[Any]], name: str) -> NDArray[np.float32]:
    """8-bit numbers as floats; scale and zero point are one number, or one per column."""
    whole = stored[name + _QUANTISED].astype(np.float32) - stored[name + _ZERO_POINT].astype(np.float32)
    scaled: NDArray[np.float32] = whole * stored[name + _SCALE]
    return scaled


def _dotted(node: str) -> str:
    """`/base/layer.0/query/MatMul_quant` to `base.layer.0.query`."""
    return ".".join(node.strip("/").split("/")[:-1])


def _array(tensor: Any, file: Path) -> NDArray[Any]:  # noqa: ANN401 (a message made at run time)
    if tensor.data_type not in _DTYPES:
        if not tensor.raw_data or int(np.prod(tensor.dims)) <= 1:
            return np.zeros(0)  # a shape or an axis, of no interest here
        raise ValueError(f"{file}: {tensor.name} has numbers of ONNX type {tensor.data_type}; known: {list(_DTYPES)}")
    array: NDArray[Any] = np.frombuffer(tensor.raw_data, dtype=_DTYPES[tensor.data_type])
    if not tensor.raw_data:
        array = np.array(tensor.float_data or tensor.int32_data, dtype=_DTYPES[tensor.data_type])
    return array.reshape(tuple(tensor.dims))


def _model_class() -> type[Any]:
    """The class of ONNX's ModelProto, reduced to the fields read here."""
    schema = descriptor_pb2.FileDescriptorProto(name="onnx_weights.proto", package="onnx_weights", syntax="proto3")
    integer, text, raw, floating = _Field.TYPE_INT64, _Field.TYPE_STRING, _Field.TYPE_BYTES, _Field.TYPE_FLOAT
    fields: dict[str, list[tuple[str, int, int, bool, str]]] = {
        "Model": [("graph", 7, _Field.TYPE_MESSAGE, False, "Graph")],
        "Graph": [
            ("node", 1, _Field.TYPE_MESSAGE, True, "Node"),
            ("initializer", 5, _Field.TYPE_MESSAGE, True, "Tensor"),
        ],
        "Node": [("input", 1, text, True, ""), ("name", 3, text, False, ""), ("op_type", 4, text, False, "")],
        "Tensor": [
            ("dims", 1, integer, True, ""),
            ("data_type", 2, _Field.TYPE_INT32, False, ""),
            ("float_data", 4, floating, True, ""),
            ("int32_data", 5, _Field.TYPE_INT32, True, ""),
            ("name", 8, text, False, ""),
            ("raw_data", 9, raw, False, ""),
        ],
    }
    for message, members in fields.items():
        described = schema.message_type.add(name=message)
        for name, number, kind, repeated, of in members:
            field = described.field.add(name=name, number=number)
            field.type = kind  # type: ignore[assignment] # an enum's value
            field.label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
            if of:
                field.type_name = f".{schema.package}.{of}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(schema)
    found: type[Any] = message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{schema.package}.Model"))
    return found
