"""A conversation with a simulated user is one segment: each call extends the one before, the user's words are masked 0, and every sampled
token is trained once, in a spelling that no tokenizer would give."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from live_server import SECRET, model_world, serving
from test_token_exactness import Spelling, check, merging, real

from environments.banking.server import Banking
from gym_servers.models.engine import Tokenizer
from gym_servers.models.wire import LedgerExport
from gym_servers.protocol import Rollout
from gym_servers.resources import build_resources
from gym_servers.rollouts import Collector, RolloutRequest

TURNS = [
    "abab the the  cab, naïve 日本! What are the customer number and the  code word?",
    "<tool_call>\n<function=find_customer>\n<parameter=name>\nabba the\n</parameter>\n<parameter=date_of_birth>\n1980-01-01\n"
    "</parameter>\n</function>\n</tool_call>",
    "  I am sorry, the bank cannot do that.\n",
]


@pytest.mark.parametrize("tokens", [merging, real], ids=["merges", "smollm2"])
def test_a_conversation_is_one_segment(tokens: Callable[[], Tokenizer]) -> None:
    engine = Spelling(tokens(), TURNS)
    row = next(row for row in Banking().generate(40, 5, "train") if row["level"] == 2)
    with serving(build_resources([Banking()], workers=1)) as bank, model_world(engine) as world:
        collector = Collector({"banking": f"{bank}/banking"}, world.url, secret=SECRET)

        async def run() -> list[Rollout]:
            return [r async for r in collector.collect([RolloutRequest(row, "t", "banking", "g", 0, seed=7)])]

        (rollout,) = asyncio.run(run())
    assert (rollout.failure, rollout.reward, rollout.steps) == (None, 0.0, 3)
    said = [str(item["content"]) for item in rollout.output if item.get("role") == "user"]
    assert len(said) == 3 and row["user"]["facts"]["code_word"] in said[1]
    texts = check(LedgerExport(rollout_id="r", segments=rollout.segments, usage=rollout.usage), engine, 3)
    assert [text.removesuffix(engine.tokenizer.end_token) for text in texts] == TURNS
    (segment,) = rollout.segments
    prompt = [i for i, m in zip(segment.token_ids, segment.mask, strict=True) if not m]
    assert all(words in engine.tokenizer.decode(prompt) for words in said[:2])
    assert said[2] not in engine.tokenizer.decode(segment.token_ids)  # the goodbye is nobody's prompt
