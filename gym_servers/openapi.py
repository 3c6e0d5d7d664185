"""The OpenAPI 3.1 document of a resources server, made from its environments: rows, tools, verdicts, errors.

Paths stand under `/<environment>/`; a server with one environment has the same at its root, which the document does not repeat.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from gym_servers.environment import (
    ConversationEnvironment,
    Environment,
    GroupEnvironment,
    GroupRollout,
    Said,
    UserTurn,
)
from gym_servers.protocol import Verdict
from gym_servers.tools import Tool, check_tools

Schema = dict[str, Any]

ERROR: Schema = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {key: {"type": "string"} for key in ("type", "message", "request_id")},
            "required": ["type", "message", "request_id"],
        },
        "retryable": {"type": "boolean", "description": "Of a 503: whether the same request may do better later."},
    },
    "required": ["error"],
}
ITEMS: Schema = {"type": "array", "items": {"type": "object"}, "description": "OpenAI Responses items, in order."}
RESPONSE: Schema = {"type": "object", "properties": {"output": ITEMS}, "required": ["output"]}
DECLARATIONS: Schema = {
    "type": "array",
    "description": "For `responses_create_params.tools`.",
    "items": {"type": "object", "properties": {"type": {"const": "function"}, "name": {"type": "string"}}},
}
ABOUT: Schema = {
    "type": "object",
    "properties": {
        "reward": {
            "enum": ["single", "group"],
            "description": "group: POST verify_group, once all attempts are there.",
        },
        "tools": {"type": "array", "items": {"type": "string"}, "description": "Those that are served."},
        "read_only_tools": {"type": "array", "items": {"type": "string"}},
        "session_id": {"type": "string", "description": "Where the environment has a state; also set as a cookie."},
    },
    "required": ["reward", "read_only_tools"],
}
SESSION: Schema = {
    "name": "X-Session-Id",
    "in": "header",
    "schema": {"type": "string"},
    "description": "Of seed_session; its cookie does as well.",
}
FAILURES = {
    "400": "A header or a setting of the request is wrong.",
    "401": "The bearer token is missing or wrong.",
    "413": "The body is too large.",
    "422": "The row, or what the model wrote, is at fault; the message names the field.",
    "503": "A failure: no verdict, which is not a reward.",
}


class Document:
    """A document in the making. Models of an environment are named `<environment>.<Model>`."""

    def __init__(self) -> None:
        self.paths: dict[str, Schema] = {}
        self.schemas: dict[str, Schema] = {"Error": ERROR}

    def model(self, prefix: str, model: type[BaseModel]) -> Schema:
        """A reference to `model` among the components."""
        schema = model.model_json_schema(ref_template=f"#/components/schemas/{prefix}{{model}}")
        for name, part in schema.pop("$defs", {}).items():
            self.schemas[prefix + name] = part
        self.schemas[prefix + model.__name__] = schema
        return {"$ref": f"#/components/schemas/{prefix}{model.__name__}"}

    def add(self, method: str, path: str, summary: str, answer: Schema, body: Schema | None = None) -> Schema:
        """One operation, which is returned."""
        answers = {code: _content(text, {"$ref": "#/components/schemas/Error"}) for code, text in FAILURES.items()}
        operation: Schema = {
            "summary": summary,
            "operationId": f"{method} {path}",
            "responses": {"200": answer, **answers},
        }
        if body is not None:
            operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
        self.paths.setdefault(path, {})[method] = operation
        return operation


def _content(description: str, schema: Schema, media_type: str = "application/json") -> Schema:
    return {"description": description, "content": {media_type: {"schema": schema}}}


def _with(schema: Schema, fields: dict[str, Schema], required: list[str]) -> Schema:
    return {"allOf": [schema, {"type": "object", "properties": fields, "required": required}]}


def _add_tool(document: Document, name: str, tool: Tool) -> None:
    arguments = document.model(f"{name}.tool.", tool.arguments)
    answer = _content("The tool's output.", {}, "application/json")
    answer["content"]["text/plain"] = {"schema": {"type": "string"}}
    operation = document.add("post", f"/{name}/{tool.name}", tool.description.split("\n")[0], answer, arguments)
    operation["description"] = tool.description
    operation["x-read-only"] = tool.read_only
    if tool.with_state:
        operation["parameters"] = [SESSION]


def _add_environment(document: Document, environment: Environment) -> None:
    name = environment.name
    row = document.model(f"{name}.", environment.row_type)
    verdict = document.model("", Verdict)
    if isinstance(environment, GroupEnvironment):
        fields = document.schemas
        document.model("", GroupRollout)
        rollout = {key: value for key, value in fields["GroupRollout"]["properties"].items() if key != "output"}
        one = {"type": "object", "properties": {**rollout, "response": RESPONSE}, "required": ["response"]}
        group = {
            "type": "object",
            "properties": {"task": row, "rollouts": {"type": "array", "items": one, "minItems": 1}},
            "required": ["task", "rollouts"],
        }
        rewards = {"type": "array", "items": {"type": "number"}}
        verdicts = {"type": "array", "items": verdict}
        answered = _with({}, {"rewards": rewards, "verdicts": verdicts}, ["rewards", "verdicts"])
        document.add(
            "post",
            f"/{name}/verify_group",
            "Grade the rollouts of one task together",
            _content("In their order.", answered),
            group,
        )
    low, high = environment.reward_range
    graded = document.add(
        "post",
        f"/{name}/verify",
        "Grade an output",
        _content(
            f"The body, with a reward from {low:g} to {high:g} and the rest of the verdict.", {"allOf": [row, verdict]}
        ),
        _with(row, {"response": RESPONSE}, ["response"]),
    )
    graded["parameters"] = [
        {
            "name": "Idempotency-Key",
            "in": "header",
            "schema": {"type": "string"},
            "description": "A repeated request with the same key gets the stored verdict.",
        }
    ]
    document.add("post", f"/{name}/seed_session", "Begin an episode", _content("How it is rewarded.", ABOUT), row)
    if isinstance(environment, ConversationEnvironment):
        said = {"type": "array", "items": document.model("", Said)}
        asked = {"type": "object", "properties": {"messages": said}, "required": ["messages"]}
        turn = document.add(
            "post",
            f"/{name}/user_turn",
            "What the simulated user says next",
            _content("Its words, and whether they end the conversation.", document.model("", UserTurn)),
            asked,
        )
        turn["parameters"] = [SESSION]
    document.add("get", f"/{name}/tools", "The tools' declarations", _content("In order.", DECLARATIONS))
    for tool in check_tools(name, environment.tools()).values():
        _add_tool(document, name, tool)


def openapi(environments: Sequence[Environment]) -> Schema:
    """The document of a server with `environments`."""
    document = Document()
    texts = {key: {"type": "string"} for key in ("name", "description", "agent", "reward", "url")}
    listing = {"type": "array", "items": {"type": "object", "properties": texts, "required": list(texts)}}
    document.add("get", "/environments", "What is served here", _content("Of every environment.", listing))
    for environment in environments:
        _add_environment(document, environment)
    return {
        "openapi": "3.1.0",
        "info": {"title": "omnigym resources server", "version": "1"},
        "paths": document.paths,
        "components": {
            "schemas": document.schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}],
    }


def gaps(document: Schema) -> list[str]:
    """What the document leaves open: operations without a summary, fields and arguments of no type."""
    problems = [
        f"{method.upper()} {path} has no summary: give the tool a docstring"
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if not operation["summary"].strip()
    ]
    typed = {"type", "$ref", "anyOf", "oneOf", "allOf", "enum", "const"}
    for name, schema in document["components"]["schemas"].items():
        for field, about in schema.get("properties", {}).items():
            if "." in name and not typed & set(about):
                problems.append(f"{name}: field '{field}' has no type")
    return problems
