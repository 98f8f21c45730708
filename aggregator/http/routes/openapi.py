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

_Body = type[msgspec.Struct] | str | None  # a string is a media type


class _Operation(msgspec.Struct, frozen=True):
    summary: str
    who: str | None = None
    request: _Body = None
    response: _Body = None


_TABLE: dict[tuple[str, str], _Operation] = {
    ("get", "/v1/server"): _Operation(
        "The keys for enrolment bundles", None, None, http_api.ServerInfo
    ),
    ("get", "/v1/tasks/{task}/offer"): _Operation(
        "What a device may do now", _DEVICE, None, http_api.Offer
    ),
    ("get", "/v1/models/{digest}"): _Operation(
        "A model version, with Range", _DEVICE, None, _OCTETS
    ),
    ("get", "/v1/deltas/{digest}/{held}"): _Operation(
        "The present model told from the one that is held (zeros: none), with Range and If-Range",
        _DEVICE,
        None,
        _OCTETS,
    ),
    ("post", "/v1/revocations"): _Operation(
        "A partner's signed revocation list",
        _DEVICE,
        _OCTETS,
        v.RevocationsTaken,
    ),
    ("get", "/v1/revocations/{digest}"): _Operation("A revocation list", _DEVICE, None, _OCTETS),
    ("post", "/v1/adverts"): _Operation("Report in", _DEVICE, _OCTETS, http_api.AdvertAccepted),
    ("delete", "/v1/sessions/{session}"): _Operation(
        "Leave before the masking set is fixed", _DEVICE, None, None
    ),
    ("get", "/v1/sessions/{session}/messages"): _Operation("Mail", _DEVICE, None, http_api.Mail),
    ("post", "/v1/sessions/{session}/messages"): _Operation(
        "Send a message", _DEVICE, _OCTETS, None
    ),
    ("get", "/v1/sessions/{session}/vector"): _Operation(
        "Upload state", _DEVICE, None, http_api.UploadState
    ),
    ("put", "/v1/sessions/{session}/vector"): _Operation(
        "Send a chunk of the masked vector",
        _DEVICE,
        _OCTETS,
        http_api.UploadState,
    ),
    ("get", "/ledger/checkpoint"): _Operation("The signed checkpoint", None, None, "text/plain"),
    ("get", "/ledger/tile/{path}"): _Operation("A tile or entry bundle", None, None, _OCTETS),
    ("get", "/ledger/contributors/{digest}"): _Operation(
        "A list of contributors", None, None, _OCTETS
    ),
    ("post", "/v1/operator/partners"): _Operation(
        "Add a partner",
        _OPERATOR,
        v.PartnerBody,
        v.PartnerAdded,
    ),
    ("get", "/v1/operator/partners"): _Operation("List partners", _OPERATOR, None, v.PartnerList),
    ("post", "/v1/operator/partners/{key}/remove"): _Operation(
        "Remove a partner",
        _OPERATOR,
        None,
        v.PartnerRemoved,
    ),
    ("get", "/v1/operator/devices"): _Operation(
        "List bans and strikes", _OPERATOR, None, v.DeviceList
    ),
    ("post", "/v1/operator/devices/{key}/ban"): _Operation(
        "Ban a device",
        _OPERATOR,
        v.BanBody,
        v.BanMade,
    ),
    ("post", "/v1/operator/devices/{key}/unban"): _Operation("Lift a ban", _OPERATOR, None, None),
    ("get", "/v1/operator/devices/{key}/evidence"): _Operation(
        "Evidence against a banned device",
        _OPERATOR,
        None,
        _OCTETS,
    ),
    ("post", "/v1/operator/tasks"): _Operation("Create a task", _OPERATOR, TaskSpec, v.TaskCreated),
    ("get", "/v1/operator/tasks"): _Operation("List tasks", _OPERATOR, None, v.TaskList),
    ("get", "/v1/operator/tasks/{task}"): _Operation("Show a task", _OPERATOR, None, v.TaskView),
    ("post", "/v1/operator/tasks/{task}/pause"): _Operation(
        "Pause a task", _OPERATOR, None, v.TaskView
    ),
    ("post", "/v1/operator/tasks/{task}/resume"): _Operation(
        "Resume a task",
        _OPERATOR,
        None,
        v.TaskView,
    ),
    ("post", "/v1/operator/plans"): _Operation(
        "What a task would be; nothing is created", _OPERATOR, TaskSpec, v.TaskPlanned
    ),
    ("post", "/v1/operator/tasks/{task}/close"): _Operation(
        "Let no further cohort form, for good", _OPERATOR, None, v.TaskView
    ),
    ("post", "/v1/operator/tasks/{task}/delete"): _Operation(
        "Close and hide a task that was never charged", _OPERATOR, None, v.TaskDeleted
    ),
    ("post", "/v1/operator/tasks/{task}/cohort/abort"): _Operation(
        "End the open cohort", _OPERATOR, None, v.CohortAborted
    ),
    ("post", "/v1/operator/token"): _Operation(
        "Take another operator's token", _OPERATOR, v.TokenBody, v.TokenRotated
    ),
    ("get", "/v1/operator/tasks/{task}/model"): _Operation(
        "The current model", _OPERATOR, None, _OCTETS
    ),
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
    found = {body for row in _TABLE.values() for body in (row.request, row.response)}
    named: set[type[msgspec.Struct]] = {
        http_api.Problem,
        *(body for body in found if isinstance(body, type)),
    }
    kinds = sorted(named, key=lambda kind: kind.__name__)
    _, schemas = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    paths: dict[str, dict[str, Any]] = {}
    for (method, path), row in _TABLE.items():
        paths.setdefault(path, {})[method] = _described(method, path, row)
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


def _content(body: type[msgspec.Struct] | str) -> dict[str, Any]:
    if isinstance(body, str):
        return {body: {"schema": {"type": "string", "format": "binary"}}}
    return {"application/json": {"schema": _reference(body)}}


def _reference(body: type[msgspec.Struct]) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{body.__name__}"}


def _described(method: str, path: str, operation: _Operation) -> dict[str, Any]:
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in names
    ]
    parameters += [
        {"name": name, "in": "query", "schema": {"type": "number", "minimum": 0}}
        for name in _QUERIES.get((method, path), ())
    ]
    request, response = operation.request, operation.response
    done = {"description": "Done", **({"content": _content(response)} if response else {})}
    result: dict[str, Any] = {
        "summary": operation.summary,
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
    if operation.who:
        result["security"] = [{operation.who: []}]
    if request:
        result["requestBody"] = {"required": True, "content": _content(request)}
    return result
