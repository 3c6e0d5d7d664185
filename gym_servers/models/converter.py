"""Responses items to chat messages and back, in NeMo-Gym's forms, token fields included.

One assistant message holds a run of reasoning, message and function_call items; reasoning travels inside the text as
`<think>...</think>`. System and developer messages that lead, and `instructions`, become one system message.
"""

from __future__ import annotations

import secrets
import time
from typing import Any

from gym_servers.models.parsers import split_reasoning
from gym_servers.protocol import Item, OmnigymError

TOKEN_FIELDS = ("prompt_token_ids", "generation_token_ids", "generation_log_probs", "generation_loss_mask")
"""NeMo-Gym's, and ours: the mask of a generation of which the server wrote a part (0 there)."""
SAME_NAME = ("temperature", "top_p", "metadata", "top_logprobs", "model", "user", "store", "service_tier")
KNOWN = frozenset(
    {
        *SAME_NAME,
        *("background", "conversation", "include", "input", "instructions", "max_output_tokens", "max_tool_calls"),
        *(
            "parallel_tool_calls",
            "previous_response_id",
            "prompt",
            "prompt_cache_key",
            "reasoning",
            "safety_identifier",
        ),
        *("stream", "text", "tool_choice", "tools", "truncation"),
    }
)
STORED = ("conversation", "previous_response_id", "prompt")
"""Fields that name what an earlier request stored."""
FINISH_TO_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


class ConversionError(OmnigymError, ValueError):
    """A request that cannot be said in the other form."""


class NotRepresentable(ConversionError, NotImplementedError):
    """Content that chat messages have no place for."""


def _part(part: Any, where: str) -> Item:
    """One Responses content part as a chat content part."""
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if kind in ("input_text", "output_text", "text") and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind == "refusal" and isinstance(part.get("refusal"), str):
        return {"type": "text", "text": part["refusal"]}
    if kind == "input_image" and isinstance(part.get("image_url"), str):
        return {
            "type": "image_url",
            "image_url": {k: part[k] for k in ("url", "detail") if k in part} | {"url": part["image_url"]},
        }
    raise NotRepresentable(f"{where}: content part {kind!r} cannot be said in a chat message")


def _content(content: Any, where: str) -> str | list[Item]:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ConversionError(f"{where}: content must be a string or a list of parts, found {type(content).__name__}")
    return [_part(part, where) for part in content]


def _text(content: Any, where: str) -> str:
    made = _content(content, where)
    if isinstance(made, str):
        return made
    if any(part["type"] != "text" for part in made):
        raise NotRepresentable(f"{where}: text only")
    return "".join(part["text"] for part in made)


def _tool_output(item: Item) -> Item:
    call_id, output = item.get("call_id"), item.get("output")
    if isinstance(output, list):
        bad = [
            str(p.get("type"))
            for p in output
            if isinstance(p, dict) and p.get("type") not in ("input_text", "text", "output_text")
        ]
        if bad:
            raise NotRepresentable(
                f"Cannot convert Responses function_call_output for call {call_id!r} to a Chat Completions tool message: "
                f"Chat tool messages cannot represent content part type(s) {', '.join(map(repr, bad))}"
            )
    return {"role": "tool", "content": _content(output, f"output of call {call_id!r}"), "tool_call_id": call_id}


def items_to_messages(items: list[Item], *, token_fields: bool = False) -> list[Item]:
    """Responses input items as chat messages. Raises ConversionError."""
    messages: list[Item] = []
    run: Item | None = None  # the assistant message being put together

    def assistant(item: Item) -> Item:
        nonlocal run
        if run is None:
            run = {"role": "assistant"}
            messages.append(run)
        if token_fields:
            run.update({name: item[name] for name in TOKEN_FIELDS if item.get(name) is not None})
        return run

    for index, item in enumerate(items):
        where = f"input[{index}]"
        if not isinstance(item, dict):
            raise ConversionError(f"{where}: expected an object, found {type(item).__name__}")
        kind = item.get("type") or "message"
        if kind == "reasoning":
            text = "".join(s.get("text", "") for s in item.get("summary") or [])
            message = assistant(item)
            if text:
                message["content"] = message.get("content", "") + f"<think>{text}</think>"
        elif kind == "function_call":
            call = {
                "id": item.get("call_id"),
                "type": "function",
                "function": {"name": item.get("name"), "arguments": item.get("arguments", "")},
            }
            assistant(item).setdefault("tool_calls", []).append(call)
        elif kind == "message" and item.get("role") == "assistant":
            if run is not None and "tool_calls" in run:
                run = None  # a message after calls is a turn of its own
            message = assistant(item)
            message["content"] = message.get("content", "") + _text(item.get("content", ""), where)
        elif kind == "function_call_output":
            run = None
            messages.append(_tool_output(item))
        elif kind == "message" and item.get("role") in ("user", "system", "developer"):
            run = None
            messages.append({"role": item["role"], "content": _content(item.get("content"), where)})
        else:
            raise ConversionError(f"{where}: item type {kind!r} with role {item.get('role')!r} is not supported")
    return messages


def responses_to_chat(params: Item, *, token_fields: bool = False) -> Item:
    """A Responses request as a chat request; absent fields stay absent. Raises ConversionError."""
    unknown = sorted(set(params) - KNOWN)
    if unknown:
        raise ConversionError(f"unknown field(s) {unknown} in the Responses request")
    if stored := [name for name in STORED if params.get(name) is not None]:
        raise ConversionError(
            f"field(s) {stored}: nothing is stored between requests, send the whole history as 'input'"
        )
    given = params.get("input")
    if isinstance(given, str):
        messages: list[Item] = [{"role": "user", "content": [{"type": "text", "text": given}]}]
    elif isinstance(given, list):
        messages = items_to_messages(given, token_fields=token_fields)
    else:
        raise ConversionError(f"field 'input' must be a string or a list of items, found {type(given).__name__}")
    lead = 0
    while lead < len(messages) and messages[lead]["role"] in ("system", "developer"):
        lead += 1
    head = [params["instructions"]] if params.get("instructions") else []
    head += [_text(message["content"], "system message") for message in messages[:lead]]
    if head:
        messages = [{"role": "system", "content": "\n\n".join(head)}, *messages[lead:]]
    chat: Item = {"messages": messages}
    chat.update({name: params[name] for name in SAME_NAME if params.get(name) is not None})
    if params.get("max_output_tokens") is not None:
        chat["max_tokens"] = params["max_output_tokens"]
    reasoning = params.get("reasoning")
    if isinstance(reasoning, dict) and reasoning.get("effort") is not None:
        chat["reasoning_effort"] = reasoning["effort"]
    tools = params.get("tools")
    if tools:
        chat["tools"] = [
            {"type": "function", "function": {k: v for k, v in tool.items() if k not in ("type", "strict")}}
            for tool in tools
        ]
        chat.update({k: params[k] for k in ("tool_choice", "parallel_tool_calls") if params.get(k) is not None})
    elif params.get("tool_choice") == "required":
        raise ConversionError("tool_choice='required' requires at least one tool")
    return chat


def message_to_items(message: Item, *, reasoning: bool, token_fields: bool = False) -> list[Item]:
    """A chat completion's message as Responses output items. Token fields go to the last item."""
    content = message.get("content") or ""
    blocks, text = split_reasoning(content) if reasoning else ([], content)
    if message.get("reasoning_content"):
        blocks = [message["reasoning_content"], *blocks]
    calls = message.get("tool_calls") or []
    items: list[Item] = []
    if blocks:
        summary = [{"text": block, "type": "summary_text"} for block in blocks]
        items.append({"id": f"rs_{secrets.token_hex(16)}", "summary": summary, "type": "reasoning"})
    if text or not (blocks or calls):
        items.append(
            {
                "id": f"msg_{secrets.token_hex(16)}",
                "content": [{"annotations": [], "text": text, "type": "output_text"}],
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
    if token_fields:
        items[-1].update({name: message[name] for name in TOKEN_FIELDS if message.get(name) is not None})
    return items


def chat_to_response(
    completion: Item, *, reasoning: bool, token_fields: bool = False, request: Item | None = None
) -> Item:
    """A chat completion as a Responses response."""
    choice = completion["choices"][0]
    reason = FINISH_TO_INCOMPLETE.get(choice.get("finish_reason", "stop"))
    details = completion.get("incomplete_details") or ({"reason": reason} if reason else None)
    usage = completion.get("usage")
    request = request or {}
    return {
        "id": f"resp_{secrets.token_hex(16)}",
        "object": "response",
        "created_at": completion.get("created", int(time.time())),
        "model": completion.get("model", ""),
        "status": "incomplete" if details else "completed",
        "incomplete_details": details,
        "error": None,
        "instructions": request.get("instructions"),
        "metadata": request.get("metadata") or {},
        "output": message_to_items(choice["message"], reasoning=reasoning, token_fields=token_fields),
        "parallel_tool_calls": request.get("parallel_tool_calls", True),
        "temperature": request.get("temperature"),
        "tool_choice": request.get("tool_choice", "auto"),
        "tools": request.get("tools") or [],
        "top_p": request.get("top_p"),
        "usage": usage
        and {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": (usage.get("prompt_tokens_details") or {}).get("cached_tokens")},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {
                "reasoning_tokens": (usage.get("completion_tokens_details") or {}).get("reasoning_tokens")
            },
            "total_tokens": usage["total_tokens"],
        },
    }
