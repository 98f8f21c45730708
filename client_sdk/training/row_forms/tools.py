"""Tools beside a conversation, and an answer's calls of them, as chat templates take both."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from client_sdk.errors import ContributionError
from client_sdk.training.row_forms.values import get, is_empty, json_value, read_once


def tools_of(value: Any) -> tuple[dict[str, Any], ...]:
    """A list of schemas, or that list as JSON text, which tables of records hold."""
    if value is None or is_empty(value):
        return ()
    tools = [json_value(tool) for tool in read_once(parsed(value), "Tools")]
    if not all(isinstance(tool, dict) for tool in tools):
        raise ContributionError(
            "example-form", "Tools are not a list of schemas.", expected="JSON schemas of functions"
        )
    return tuple(tools)


def calls_of(message: Mapping[Any, Any]) -> list[Any]:
    """The calls in an answer, also in the one that older data sets name ``function_call``."""
    calls, older = get(message, "tool_calls"), get(message, "function_call")
    found = [] if calls is None else [call_of(call) for call in read_once(calls, "Calls of tools")]
    return found or ([] if older is None else [call_of(older)])


def call_of(call: Any) -> Any:
    """As templates take it, which write the arguments of a call as JSON: not twice."""
    call = json_value(call)
    if not isinstance(call, dict):
        raise ContributionError(
            "example-form", "A call of a tool is not a mapping.", found=type(call).__name__
        )
    if "name" in call and "function" not in call:
        call = {"type": "function", "function": call}
    function = call.get("function")
    if isinstance(function, dict) and isinstance(function.get("arguments"), str):
        try:
            arguments = json.loads(function["arguments"])
        except (ValueError, RecursionError):
            arguments = None
        if isinstance(arguments, dict):
            call = {**call, "function": {**function, "arguments": arguments}}
    return call


def parsed(value: Any) -> Any:
    """What a JSON text holds; other values as they are."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ContributionError(
            "example-form", "A tool or a call of one is text that is not JSON."
        ) from error
