"""From a tool's arguments to an HTTP request, and from the answer to a result."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

from llamastack import v1
from services.tools.outgoing import Answer
from services.tools.provider import Access
from services.tools.providers.openapi.document import BODY, FORM, JSON_TYPES, Api, Operation, Parameter
from services.tools.providers.plain import answered, failed
from stack_client.errors import FailedPreconditionError, InvalidArgumentError

SHOWN_ERROR = 4000
"""Characters of an answer that says what went wrong."""
ATTACHED = 1 << 20
"""Bytes of an answer that is neither text nor JSON."""
_DELIMITERS = {"form": ",", "simple": ",", "spaceDelimited": " ", "pipeDelimited": "|"}


@dataclass(kw_only=True)
class Request:
    """What is sent."""

    url: str
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes | None = None


def request_of(api: Api, operation: Operation, arguments: Mapping[str, Any], *, access: Access) -> Request:
    """The request of a call.

    Raises:
        InvalidArgumentError: If a value cannot be written where it belongs.
        FailedPreconditionError: If the operation wants a credential that is not there.
    """
    path, query, headers = operation.path, [], {"Accept": "application/json, text/*;q=0.9, */*;q=0.1"}
    for parameter in operation.parameters:
        if parameter.argument not in arguments:
            continue
        value = arguments[parameter.argument]
        if parameter.place == "query":
            query += _query(parameter, value)
            continue
        text = _joined(parameter, value)
        if parameter.place == "path":
            if text in {"", ".", ".."}:
                raise InvalidArgumentError(f"{parameter.argument} is {text!r}, which would change the path")
            path = path.replace(f"{{{parameter.name}}}", quote(text, safe=""))
        else:
            if not text.isprintable() or not text.isascii():
                raise InvalidArgumentError(f"{parameter.argument} cannot stand in a header: give plain ASCII")
            headers[parameter.name] = text
    request = Request(url=f"{api.server}{path}", headers=headers)
    if BODY in arguments and operation.media_type:
        request.headers["Content-Type"] = operation.media_type
        request.content = _content(operation.media_type, arguments[BODY])
    query += _authorised(api, operation, request, access)
    if query:
        request.url += f"?{urlencode(query, quote_via=quote)}"
    return request


def result_of(answer: Answer) -> v1.ToolInvocationResult:
    """An answer as a result; 4xx and 5xx are faults whose body the model may read."""
    facts = {"status": answer.status, "media_type": answer.media_type}
    if answer.status >= 400:
        text = answer.text[:SHOWN_ERROR]
        return failed(f"The server answered {answer.status}. {text}".strip(), code=answer.status, **facts)
    if answer.cut:
        facts["cut"] = True
    if not answer.data:
        return answered(f"Done (the server answered {answer.status} without content).", **facts)
    if _is_text(answer):
        return answered(_text(answer), **facts)
    size = f"{answer.media_type or 'data'} of {'over ' if answer.cut else ''}{len(answer.data)} bytes"
    if answer.cut or len(answer.data) > ATTACHED:
        return failed(f"The answer is {size}, which is no text and too long to be attached.", code=1, **facts)
    result = answered(f"The answer is {size}; it is attached.", **facts)
    uri = f"data:{answer.media_type or 'application/octet-stream'};base64,{base64.b64encode(answer.data).decode()}"
    result.attachments.add(content=v1.ContentOrUrl(url=v1.URL(uri=uri)), mime_type=answer.media_type)
    return result


def _text(answer: Answer) -> str:
    """An answer as text; JSON without what only makes it longer."""
    if JSON_TYPES.fullmatch(answer.media_type) and not answer.cut:
        try:
            return _json(json.loads(answer.data))
        except (ValueError, RecursionError):
            return answer.text
    return answer.text


def _is_text(answer: Answer) -> bool:
    kind = answer.media_type
    if kind.startswith("text/") or kind.endswith(("json", "xml", "yaml", "javascript")) or kind == FORM:
        return True
    return not kind and b"\0" not in answer.data


def _query(parameter: Parameter, value: Any) -> list[tuple[str, str]]:  # noqa: ANN401 (JSON)
    if parameter.as_json:
        return [(parameter.name, _json(value))]
    if isinstance(value, Mapping):
        if parameter.style == "deepObject":
            return [(f"{parameter.name}[{key}]", _scalar(one)) for key, one in value.items()]
        if parameter.explode:
            return [(str(key), _scalar(one)) for key, one in value.items()]
    if isinstance(value, list) and parameter.explode:
        return [(parameter.name, _scalar(one)) for one in value]
    return [(parameter.name, _joined(parameter, value))]


def _joined(parameter: Parameter, value: Any) -> str:  # noqa: ANN401 (JSON)
    if parameter.as_json:
        return _json(value)
    delimiter = _DELIMITERS.get(parameter.style, ",")
    if isinstance(value, list):
        return delimiter.join(map(_scalar, value))
    if isinstance(value, Mapping):
        pairs = [(str(key), _scalar(one)) for key, one in value.items()]
        return delimiter.join("=".join(pair) if parameter.explode else delimiter.join(pair) for pair in pairs)
    return _scalar(value)


def _scalar(value: Any) -> str:  # noqa: ANN401 (JSON)
    return value if isinstance(value, str) else "" if value is None else _json(value)


def _json(value: Any) -> str:  # noqa: ANN401 (JSON)
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _content(media_type: str, body: Any) -> bytes:  # noqa: ANN401 (JSON)
    if JSON_TYPES.fullmatch(media_type):
        return _json(body).encode()
    if media_type == FORM:
        if not isinstance(body, Mapping):
            raise InvalidArgumentError("body must be an object, for it is sent as a form")
        pairs = [
            (key, _scalar(one))
            for key, value in body.items()
            for one in (value if isinstance(value, list) else [value])
        ]
        return urlencode(pairs).encode()
    return str(body).encode()


def _authorised(api: Api, operation: Operation, request: Request, access: Access) -> Sequence[tuple[str, str]]:
    """Put the credentials of the first alternative that we have into the request; returns those of its query.

    Raises:
        FailedPreconditionError: If the operation demands some and none are there.
    """
    if not operation.security:
        return []
    wanted = []
    for alternative in operation.security:
        found = [_credential(api, name, access) for name in alternative]
        if all(one is not None for one in found):
            query = []
            for place, name, value in [one for one in found if one is not None]:
                if place == "query":
                    query.append((name, value))
                else:
                    request.headers[name] = value
            return query
        wanted.append(" and ".join(alternative))
    raise FailedPreconditionError(
        f"{operation.tool.name} needs the credential {' or '.join(wanted)}; the operator gives it as a secret "
        "of the group (settings.secrets_ref), under that name"
    )


def _credential(api: Api, name: str, access: Access) -> tuple[str, str, str] | None:
    """Place, name and value of a scheme's credential; None when it is not there."""
    scheme, secret = api.schemes.get(name, {}), access.secret
    kind, http = scheme.get("type"), str(scheme.get("scheme", "")).lower()
    if kind == "http" and http == "basic":
        if "username" not in secret or "password" not in secret:
            return None
        pair = f"{secret['username']}:{secret['password']}".encode()
        return "header", "Authorization", f"Basic {base64.b64encode(pair).decode()}"
    if kind == "apiKey" and scheme.get("in") in {"header", "query"}:
        value = secret.get(name) or secret.get("api_key")
        return (str(scheme["in"]), str(scheme.get("name", "")), value) if value else None
    if (kind == "http" and http == "bearer") or kind in {"oauth2", "openIdConnect"}:
        value = access.authorization or secret.get(name) or secret.get("token") or secret.get("api_key")
        return ("header", "Authorization", f"Bearer {value}") if value else None
    return None
