"""Chat templates: messages to the text that the model reads (spec/algorithm.md, section 4).

Without tools and without a reasoning switch the model's own template is used; with either, omnigym's (omnigym.jinja), which
is ChatML with tool calls in XML-style tags. An assistant turn that this server sampled is rendered from its raw text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson

from gym_servers.protocol import Item, OmnigymError

OWN_TEMPLATE = Path(__file__).with_name("omnigym.jinja")


class TemplateError(OmnigymError):
    """Messages that the chat template refuses."""


def text_of(content: Any) -> str:
    """A message's text: a string, or the text parts of a list joined. Raises TemplateError for an image and the like."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise TemplateError(f"message content must be a string or a list of parts, found {type(content).__name__}")
    parts = []
    for part in content:
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise TemplateError(f"message content part {kind!r}: this model reads text only")
        parts.append(part["text"])
    return "".join(parts)


def arguments_of(call: Item) -> dict[str, Any]:
    """A tool call's arguments as an object; what is not a JSON object stands under `arguments`."""
    arguments = call.get("function", {}).get("arguments", "")
    if isinstance(arguments, dict):
        return arguments
    try:
        value = orjson.loads(arguments)
    except orjson.JSONDecodeError:
        value = arguments
    return value if isinstance(value, dict) else {"arguments": value}


@lru_cache(1)
def _own_source() -> str:
    return OWN_TEMPLATE.read_text()


@lru_cache(8)
def _compile(source: str) -> Any:
    # jinja2 comes with the inference engines; verifier containers import this module's neighbours without it
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(f"the model's chat template: {message}")

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value, **_: orjson.dumps(value).decode()
    environment.globals["raise_exception"] = refuse
    return environment.from_string(source)


@dataclass(frozen=True)
class ChatTemplate:
    """model_template: the model's own jinja text, or None. special: bos_token and the like, which some templates read."""

    model_template: str | None
    special: tuple[tuple[str, str], ...] = ()

    def generation_prefix(self, reasoning: bool | None) -> str:
        """What the template writes into the assistant's turn before the model samples."""
        return "" if reasoning is None else "<think>" if reasoning else "<think></think>"

    def render(
        self,
        messages: Sequence[Item],
        tools: list[Item] | None = None,
        *,
        reasoning: bool | None = None,
        generation: bool = False,
        raw: dict[int, str] | None = None,
    ) -> str:
        """The text of `messages`; with `generation`, up to where the assistant's next turn starts.

        raw: for messages by index, the text that was sampled, which replaces what the message says.
        """
        uses_tools = bool(tools) or any(m.get("role") == "tool" or m.get("tool_calls") for m in messages)
        own = self.model_template is None or uses_tools or reasoning is not None
        prepared: list[Item] = []
        for index, message in enumerate(messages):
            role = message.get("role")
            if role not in ("system", "developer", "user", "assistant", "tool"):
                raise TemplateError(f"message {index} has role {role!r}: use system, user, assistant or tool")
            role = "system" if role == "developer" else role
            if raw and index in raw:
                prepared.append({"role": role, "content": raw[index]})
                continue
            item: Item = {"role": role, "content": text_of(message.get("content"))}
            thoughts = message.get("reasoning_content")
            if reasoning is not None and isinstance(thoughts, str) and thoughts and "</think>" not in item["content"]:
                item["content"] = f"<think>{thoughts}</think>{item['content']}"
            if message.get("tool_calls"):
                item["tool_calls"] = [
                    {"name": str(c.get("function", {}).get("name", "")), "arguments": arguments_of(c)}
                    for c in message["tool_calls"]
                ]
            prepared.append(item)
        source = _own_source() if own else self.model_template
        assert source is not None
        try:
            text = _compile(source).render(
                messages=prepared,
                tools=tools or None,
                reasoning=reasoning,
                add_generation_prompt=generation,
                **dict(self.special),
            )
        except TemplateError:
            raise
        except Exception as error:  # a template is code that came with the model
            raise TemplateError(f"the chat template failed: {type(error).__name__}: {error}") from error
        return str(text)
