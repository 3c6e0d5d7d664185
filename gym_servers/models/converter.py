"""OpenAI Responses items <-> chat messages, in NeMo-Gym's forms.

In chat history, reasoning stands before its text as `<think>...</think>`; items of one assistant turn become one message. On
the way back the `<think>` parts become one reasoning item. Where token fields are asked for, they travel on the turn's last item.
"""

from __future__ import annotations

import re
import uuid
from typing import Any

from gym_servers.protocol import Item, OmnigymError

Message = dict[str, Any]
TOKEN_FIELDS = ("prompt_token_ids", "generation_token_ids", "generation_log_probs")
_PASSED = ("temperature", "top_p", "top_logprobs", "metadata", "model", "user", "store", "service_tier")
_KNOWN = {
    *_PASSED,
    "input",
    "instructions",
    "max_output_tokens",
    "reasoning",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "include",
    "previous_response_id",
    "text",
    "truncation",
    "background",
    "max_tool_calls",
    "prompt",
    "stream",
}
_THINK = re.compile(r"<think>(.*?)</think>", re.DOTALL)


class UnsupportedRequest(OmnigymError):
    """A request that has no chat form: says which part and why."""


def _parts(content: Any, where: str) -> Any:
    """Responses content as chat content: a string stays one, parts become chat parts."""
    if isinstance(content, str) or content is None:
        return content or ""
    parts: list[dict[str, Any]] = []
    for part in content:
        kind = part.get("type")
        if kind in ("input_text", "output_text", "text"):
            parts.append({"text": part["text"], "type": "text"})
        elif kind == "refusal":
            parts.append({"text": part["refusal"], "type": "text"})
        elif kind == "input_image" and where == "message":
            image = {"url": part["image_url"], **({"detail": part["detail"]} if "detail" in part else {})}
            parts.append({"image_url": image, "type": "image_url"})
        else:
            raise UnsupportedRequest(f"{where}: content part of type '{kind}' has no chat form")
    return parts


def _text(content: Any, where: str) -> str:
    parts = _parts(content, where)
    return parts if isinstance(parts, str) else "".join(part.get("text", "") for part in parts)


class _Turn:
    """The assistant items between two other messages."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.calls: list[dict[str, Any]] = []
        self.tokens: dict[str, Any] = {}
        self.used = False

    def message(self) -> Message:
        message: Message = {"role": "assistant", "content": "".join(self.texts)}
        if self.calls:
            message["tool_calls"] = self.calls
        return {**message, **self.tokens}


def chat_messages(request: dict[str, Any], token_fields: bool = False) -> list[Message]:
    """Messages of a Responses request. Raises UnsupportedRequest."""
    items = request.get("input", [])
    if isinstance(items, str):
        items = [{"role": "user", "content": [{"type": "input_text", "text": items}]}]
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise UnsupportedRequest("field 'input' must be a string or a list of items")
    system = [request["instructions"]] if request.get("instructions") else []
    messages: list[Message] = []
    turn = _Turn()

    def close() -> None:
        nonlocal turn
        if turn.used:
            messages.append(turn.message())
        turn = _Turn()

    for item in items:
        kind = item.get("type", "message")
        role = item.get("role")
        if kind == "message" and role in ("system", "developer"):
            system.append(_text(item.get("content"), "message"))
            continue
        if kind == "reasoning" or kind == "function_call" or (kind == "message" and role == "assistant"):
            turn.used = True
            if kind == "reasoning":
                thought = "\n".join(part.get("text", "") for part in item.get("summary") or [])
                turn.texts += [f"<think>{thought}</think>"] if thought else []
            elif kind == "message":
                turn.texts.append(_text(item.get("content"), "message"))
            else:
                function = {"arguments": item["arguments"], "name": item["name"]}
                turn.calls.append({"id": item["call_id"], "function": function, "type": "function"})
            if token_fields and all(field in item for field in TOKEN_FIELDS):
                turn.tokens = {field: item[field] for field in TOKEN_FIELDS}
            continue
        close()
        if kind == "message" and role == "user":
            messages.append({"content": _parts(item.get("content"), "message"), "role": "user"})
        elif kind == "function_call_output":
            content = _parts(item.get("output"), f"output of call '{item.get('call_id')}'")
            messages.append({"content": content, "role": "tool", "tool_call_id": item.get("call_id")})
        else:
            raise UnsupportedRequest(f"input item of type '{kind}' with role '{role}' has no chat form")
    close()
    if system:
        messages.insert(0, {"content": "\n\n".join(system), "role": "system"})
    return messages


def chat_params(request: dict[str, Any], token_fields: bool = False) -> dict[str, Any]:
    """A Responses request as chat completion parameters. Raises UnsupportedRequest, also for unknown fields."""
    unknown = sorted(set(request) - _KNOWN)
    if unknown:
        raise UnsupportedRequest(f"unknown fields {unknown} in the request")
    params: dict[str, Any] = {"messages": chat_messages(request, token_fields)}
    params.update({key: request[key] for key in _PASSED if request.get(key) is not None})
    if request.get("max_output_tokens") is not None:
        params["max_tokens"] = request["max_output_tokens"]
    if (request.get("reasoning") or {}).get("effort") is not None:
        params["reasoning_effort"] = request["reasoning"]["effort"]
    if request.get("tools"):
        params["tools"] = [
            {"function": {k: v for k, v in tool.items() if k not in ("type", "strict")}, "type": "function"}
            for tool in request["tools"]
        ]
        params.update({k: request[k] for k in ("tool_choice", "parallel_tool_calls") if request.get(k) is not None})
    elif request.get("tool_choice") == "required":
        raise UnsupportedRequest("tool_choice='required' requires at least one tool")
    return params


def response_items(message: Message, split_reasoning: bool = True, token_fields: bool = False) -> list[Item]:
    """Output items of a chat answer: reasoning, message, function calls."""
    text = message.get("content") or ""
    thoughts: list[str] = []
    if split_reasoning:
        thoughts = _THINK.findall(text)
        text = _THINK.sub("", text)
    items: list[Item] = []
    if thoughts:
        summary = [{"text": thought, "type": "summary_text"} for thought in thoughts]
        items.append({"id": f"rs_{uuid.uuid4().hex}", "summary": summary, "type": "reasoning"})
    calls = message.get("tool_calls") or []
    if text or not (calls or thoughts):
        content: list[dict[str, Any]] = [{"annotations": [], "text": text, "type": "output_text"}]
        items.append(
            {
                "id": f"msg_{uuid.uuid4().hex}",
                "content": content,
                "role": "assistant",
                "status": "completed",
                "type": "message",
            }
        )
    for call in calls:
        items.append(
            {
                "arguments": call["function"]["arguments"],
                "call_id": call["id"],
                "name": call["function"]["name"],
                "type": "function_call",
                "id": call["id"],
                "status": "completed",
            }
        )
    if token_fields and all(field in message for field in TOKEN_FIELDS):
        items[-1].update({field: message[field] for field in TOKEN_FIELDS})
    return items


def response_status(finish_reason: str) -> tuple[str, dict[str, str] | None]:
    """(status, incomplete_details) of a Response."""
    if finish_reason == "length":
        return "incomplete", {"reason": "max_output_tokens"}
    if finish_reason in ("content_filter", "context"):
        return "incomplete", {"reason": finish_reason}
    return "completed", None


def response_usage(usage: dict[str, Any] | None) -> dict[str, Any] | None:
    """Chat usage in the Responses form."""
    if usage is None:
        return None
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    reasoning = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens")
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": usage["total_tokens"],
    }
