"""An environment whose answers break its verifier in every way."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from gym_servers.environment import Environment, Row, Settings
from gym_servers.protocol import Item, Verdict, final_text


class ToySettings(Settings):
    verify_cpu_seconds: float = 0.5
    verify_memory_mb: int = 128


class ToyRow(Row):
    answer: str


class Toy(Environment):
    name = "toy"
    settings_type = ToySettings
    row_type = ToyRow

    def verify(self, row: Row, output: list[Item]) -> Verdict:
        text = final_text(output)
        if text.startswith("once:"):
            mark = Path(text[5:])
            if not mark.exists():
                mark.touch()
                os._exit(1)
            return Verdict(reward=1.0, explanation="second time")
        if text.startswith("plan:"):  # a file of what happens at each attempt
            plan = Path(text[5:])
            text, *rest = plan.read_text().split()
            plan.write_text(" ".join(rest))
        match text:
            case "killed":
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(60)
            case "burn":
                while True:
                    pass
            case "eat":
                bytearray(1 << 30)
            case "brackets":
                json.loads("[" * 100_000)
            case "sleep":
                time.sleep(60)
            case "raise":
                raise ValueError("no")
            case "exit":
                os._exit(3)
            case "1.5":
                return Verdict(reward=1.5, explanation="")
        right = text == row.model_dump()["answer"]
        return Verdict(reward=float(right), explanation="equal" if right else "not equal")

    def gold(self, row: Row) -> list[Item]:
        text = row.model_dump()["answer"]
        return [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}]


def verify_in_worker(name: str, settings: dict[str, Any], row: dict[str, Any], output: list[Item]) -> dict[str, Any]:
    environment = Toy(ToySettings.model_validate(settings))
    return environment.verify(environment.check_row(row), output).model_dump()
