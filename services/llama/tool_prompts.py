"""How Llama models are told of custom tools, in each form of calls; `tool_formats` says which form is whose.

The wording and layout are the published ones (llama-models: `llama3_1/prompt_format.md`,
`llama3_2/text_prompt_format.md`), since the models were trained on them to the letter. One deviation: published JSON
declarations give every parameter the type "object"; ours give the parameter's own schema.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from services.llama.messages import ToolDefinition

CODE_INTERPRETER = "code_interpreter"
BUILTIN_TOOLS = frozenset({"brave_search", "wolfram_alpha", "photogen", CODE_INTERPRETER})
"""Tools called as `name.call(query="...")`, but for the code interpreter, whose call is bare Python."""
_PYTHON_TYPES = {
    "string": "str", "integer": "int", "number": "float", "boolean": "bool", "array": "list", "object": "dict",
}  # fmt: skip


def _properties(tool: ToolDefinition) -> dict[str, dict[str, Any]]:
    properties = tool.parameters.get("properties") or {}
    return {name: dict(schema) if isinstance(schema, Mapping) else {} for name, schema in properties.items()}


def _required(tool: ToolDefinition) -> list[str]:
    return list(tool.parameters.get("required") or ())


def _dump(value: object, *, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def json_prompt(custom: Sequence[ToolDefinition]) -> str:
    """The user message that declares custom tools to be called in JSON."""
    parts = []
    for tool in custom:
        properties = [
            {name: {"type": schema.pop("type", "object"), "description": schema.pop("description", ""), **schema}}
            for name, schema in _properties(tool).items()
        ]
        parameters = {"type": "object", "properties": properties, "required": None}
        function = {"name": tool.name, "description": tool.description, "parameters": parameters}
        text = _dump({"type": "function", "function": function}, indent=4)
        # The published form keeps the list of required names on one line.
        head, _, tail = text.rpartition('"required": null')
        parts.append(f'{head}"required": {_dump(_required(tool))}{tail}\n')
    return (
        "Answer the user's question by making use of the following functions if needed.\n"
        "If none of the function can be used, please say so.\n"
        "Here is a list of functions in JSON format:\n" + "".join(parts) + "\nReturn function calls in JSON format."
    )


def function_tag_prompt(custom: Sequence[ToolDefinition]) -> str:
    """The user message that declares custom tools to be called in function tags."""
    lines = []
    for tool in custom:
        required = _required(tool)
        parameters = {}
        for name, schema in sorted(_properties(tool).items()):
            kind = schema.get("type", "string")
            described = {"description": schema.get("description", ""), "required": name in required}
            described["param_type"] = _PYTHON_TYPES.get(kind, kind) if isinstance(kind, str) else _dump(kind)
            rest = {key: value for key, value in schema.items() if key not in {"type", "description", "default"}}
            parameters[name] = dict(sorted((described | rest).items()))
        declared = {"name": tool.name, "description": tool.description, "parameters": parameters}
        lines.append(f"Use the function '{tool.name}' to '{tool.description}':\n{_dump(declared)}\n\n")
    return (
        "You have access to the following functions:\n\n" + "".join(lines) + "Think very carefully before calling "
        "functions.\nIf you choose to call a function ONLY reply in the following format with no prefix or suffix:\n\n"
        '<function=example_function_name>{"example_name": "example_value"}</function>\n\n'
        "Reminder:\n"
        "- If looking for real time information use relevant functions before falling back to brave_search\n"
        "- Function calls MUST follow the specified format, start with <function= and end with </function>\n"
        "- Required parameters MUST be specified\n"
        "- Only call one function at a time\n"
        "- Put the entire function call reply on one line"
    )


def python_list_prompt(custom: Sequence[ToolDefinition]) -> str:
    """The system text that declares custom tools to Llama 3.2, 3.3 and 4, which answer with a Python list of calls."""
    declared = []
    for tool in custom:
        properties = {
            name: {"type": schema.pop("type", "string"), "description": schema.pop("description", ""), **schema}
            for name, schema in _properties(tool).items()
        }
        parameters = {"type": "dict", "required": _required(tool), "properties": properties}
        declared.append({"name": tool.name, "description": tool.description, "parameters": parameters})
    return (
        "You are an expert in composing functions. You are given a question and a set of possible functions.\n"
        "Based on the question, you will need to make one or more function/tool calls to achieve the purpose.\n"
        "If none of the function can be used, point it out. If the given question lacks the parameters required by the "
        "function,\nalso point it out. You should only return the function call in tools call sections.\n\n"
        "If you decide to invoke any of the function(s), you MUST put it in the format of "
        "[func_name1(params_name1=params_value1, params_name2=params_value2...), func_name2(params)]\n"
        "You SHOULD NOT include any other text in the response.\n\n"
        "Here is a list of functions in JSON format that you can invoke.\n\n" + _dump(declared, indent=4)
    )
