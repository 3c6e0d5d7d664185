"""The environment `structured_outputs`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from environments.structured_outputs import generator
from environments.structured_outputs.schemas import small_text
from environments.structured_outputs.verifier import StructuredRow, StructuredSettings, verdict
from gym_servers.environment import Environment, Row, Settings, Split
from gym_servers.protocol import Item, Verdict, final_text, function_calls

QUICK_CHARS = 8192


class StructuredOutputs(Environment):
    """Answers in json, yaml, toml, xml or csv that match a JSON schema."""

    name = "structured_outputs"
    settings_type: ClassVar[type[Settings]] = StructuredSettings
    row_type: ClassVar[type[Row]] = StructuredRow

    def quick(self, row: Row, output: list[Item]) -> Verdict | None:
        """Short JSON answers to small schemas: linear code only, so the server's process may run it."""
        assert isinstance(row, StructuredRow)
        if row.response_mode == "text" and row.schema_type != "json":
            return None
        if row.response_mode == "tool_call":
            lengths = [len(str(call.get("arguments") or "")) for call in function_calls(output)]
        else:
            lengths = [len(final_text(output))]
        if sum(lengths) > QUICK_CHARS or not small_text(row.schema_str):
            return None
        return verdict(row, output, self.settings)

    def verify(self, row: Row, output: list[Item]) -> Verdict:
        assert isinstance(row, StructuredRow)
        return verdict(row, output, self.settings)

    def gold(self, row: Row) -> list[Item] | None:
        """The generator's own answer; published rows carry none."""
        text = (row.model_extra or {}).get("gold_answer")
        if not isinstance(text, str):
            return None
        return [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}]

    def probes(self, row: Row) -> dict[str, list[Item]]:
        """The answer with something around it, the schema, a worked example, nothing in the right form."""
        assert isinstance(row, StructuredRow)
        gold = str((row.model_extra or {}).get("gold_answer", ""))
        turns = row.responses_create_params.get("input")
        shown = [str(turn.get("content")) for turn in turns if turn.get("role") == "assistant"] if turns else []
        texts = {
            "a code fence around it": f"```{row.schema_type}\n{gold}\n```",
            "prose before it": f"Here is the answer.\n\n{gold}",
            "the schema": row.schema_str,
            "an empty object": "{}",
            "an empty list": "[]",
            "null": "null",
            "twice": f"{gold}\n{gold}",
        } | {f"worked example {k}": text for k, text in enumerate(shown)}
        return {
            name: [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}]
            for name, text in texts.items()
        }

    def generate(self, n: int, seed: int, split: Split) -> Iterator[dict[str, Any]]:
        return generator.generate(n, seed, split)
