"""The OpenAPI document, made from the route table and the message structures."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from aggregator import views as v
from aggregator.intake import bodies
from aggregator.service import Service
from dp.contracts import TaskSpec
from secagg import http_api

_OCTETS = "application/octet-stream"
_DEVICE, _OPERATOR = "device", "operator"

# (method, path) -> (summary, who, request body, response body); a string body is a media type
_TABLE: dict[tuple[str, str], tuple[str, str | None, Any, Any]] = {
    ("get", "/v1/server"): ("The keys for enrolment bundles", None, None, http_api.ServerInfo),
    ("get", "/v1/tasks/{task}/offer"): ("What a device may do now", _DEVICE, None, http_api.Offer),
    ("get", "/v1/models/{digest}"): ("A model version, with Range", _DEVICE, None, _OCTETS),
    ("post", "/v1/revocations"): (
        "A partner's signed revocation list",
        _DEVICE,
        _OCTETS,
        v.RevocationsTaken,
    ),
    ("get", "/v1/revocations/{digest}"): ("A revocation list", _DEVICE, None, _OCTETS),
    ("post", "/v1/adverts"): ("Report in", _DEVICE, _OCTETS, http_api.AdvertAccepted),
    ("get", "/v1/sessions/{session}/messages"): ("Mail", _DEVICE, None, http_api.Mail),
    ("post", "/v1/sessions/{session}/messages"): ("Send a message", _DEVICE, _OCTETS, None),
    ("get", "/v1/sessions/{session}/vector"): ("Upload state", _DEVICE, None, http_api.UploadState),
    ("put", "/v1/sessions/{session}/vector"): (
        "Send a chunk of the masked vector",
        _DEVICE,
        _OCTETS,
        http_api.UploadState,
    ),
    ("get", "/ledger/checkpoint"): ("The signed checkpoint", None, None, "text/plain"),
    ("get", "/ledger/tile/{path}"): ("A tile or entry bundle", None, None, _OCTETS),
    ("get", "/ledger/contributors/{digest}"): ("A list of contributors", None, None, _OCTETS),
    ("post", "/v1/operator/partners"): (
        "Add a partner",
        _OPERATOR,
        v.PartnerBody,
        v.PartnerAdded,
    ),
    ("get", "/v1/operator/partners"): ("List partners", _OPERATOR, None, v.PartnerList),
    ("post", "/v1/operator/partners/{key}/remove"): (
        "Remove a partner",
        _OPERATOR,
        None,
        v.PartnerRemoved,
    ),
    ("get", "/v1/operator/devices"): ("List bans and strikes", _OPERATOR, None, v.DeviceList),
    ("post", "/v1/operator/devices/{key}/ban"): (
        "Ban a device",
        _OPERATOR,
        v.BanBody,
        v.BanMade,
    ),
    ("post", "/v1/operator/devices/{key}/unban"): ("Lift a ban", _OPERATOR, None, None),
    ("get", "/v1/operator/devices/{key}/evidence"): (
        "Evidence against a banned device",
        _OPERATOR,
        None,
        _OCTETS,
    ),
    ("post", "/v1/operator/tasks"): ("Create a task", _OPERATOR, TaskSpec, v.TaskCreated),
    ("get", "/v1/operator/tasks"): ("List tasks", _OPERATOR, None, v.TaskList),
    ("get", "/v1/operator/tasks/{task}"): ("Show a task", _OPERATOR, None, v.TaskView),
    ("post", "/v1/operator/tasks/{task}/pause"): ("Pause a task", _OPERATOR, None, v.TaskView),
    ("post", "/v1/operator/tasks/{task}/resume"): (
        "Resume a task",
        _OPERATOR,
        None,
        v.TaskView,
    ),
    ("get", "/v1/operator/tasks/{task}/model"): ("The current model", _OPERATOR, None, _OCTETS),
}
_QUERIES = {
    ("get", "/v1/tasks/{task}/offer"): ("after_version", "wait_s"),
    ("get", "/v1/sessions/{session}/messages"): ("after", "wait_s"),
    ("put", "/v1/sessions/{session}/vector"): ("offset",),
}


def routes(service: Service) -> list[web.RouteDef]:
    async def openapi(_: web.Request) -> web.Response:
        return bodies.json_response(document())

    return [web.get("/v1/openapi.json", openapi)]


def document() -> dict[str, Any]:
    """OpenAPI 3.1 of the public port."""
    kinds = [http_api.Problem, *{b for row in _TABLE.values() for b in row[2:] if _is_struct(b)}]
    kinds.sort(key=lambda kind: kind.__name__)
    _, schemas = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    paths: dict[str, dict[str, Any]] = {}
    for (method, path), row in _TABLE.items():
        paths.setdefault(path, {})[method] = _operation(method, path, *row)
    return {
        "openapi": "3.1.0",
        "info": {"title": "secagg aggregator", "version": "1"},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                _DEVICE: {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "secagg.http_api.AccessToken",
                },
                _OPERATOR: {"type": "http", "scheme": "bearer"},
            },
        },
    }


def _is_struct(body: Any) -> bool:
    return isinstance(body, type) and issubclass(body, msgspec.Struct)


def _content(body: Any) -> dict[str, Any]:
    if isinstance(body, str):
        return {body: {"schema": {"type": "string", "format": "binary"}}}
    schema = _reference(body) if _is_struct(body) else {"type": "object"}
    return {"application/json": {"schema": schema}}


def _reference(body: Any) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{body.__name__}"}


def _operation(
    method: str, path: str, summary: str, who: str | None, request: Any, response: Any
) -> dict[str, Any]:
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in names
    ]
    parameters += [
        {"name": name, "in": "query", "schema": {"type": "number", "minimum": 0}}
        for name in _QUERIES.get((method, path), ())
    ]
    done = {"description": "Done", **({"content": _content(response)} if response else {})}
    operation: dict[str, Any] = {
        "summary": summary,
        "operationId": method + path.replace("{", "").replace("}", "").replace("/", "-"),
        "parameters": parameters,
        "responses": {
            "200" if response else "204": done,
            "default": {
                "description": "Refused",
                "content": {http_api.PROBLEM_TYPE: {"schema": _reference(http_api.Problem)}},
            },
        },
    }
    if who:
        operation["security"] = [{who: []}]
    if request:
        operation["requestBody"] = {"required": True, "content": _content(request)}
    return operation
