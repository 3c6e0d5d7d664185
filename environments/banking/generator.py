"""Seeded tasks at the desk, on four levels. Nothing of one split, names, numbers, amounts or phrases, stands in the other.

0: an identity check and one call, everything told at once and with ids, two tools, a worked example in the prompt.
1: ids must be looked up; the policy may forbid the wish; the tools of the wish and a few more.
2: every tool and the whole policy; the user says who it is when asked, and which card. Some cannot say, or speak for others.
3: two wishes, or a customer who does not know the customer number; more records around.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from environments.banking.bank import Bank, Database
from environments.banking.desk import TOOLS
from environments.banking.policy import policy, system_prompt
from environments.banking.scenarios import ALL, EASY, FIRST_OF_TWO, SECOND_OF_TWO, SIMPLE, Wish, World, refuse
from environments.banking.verifier import apply
from environments.banking.words import Words, words
from gym_servers.environment import Split
from gym_servers.protocol import Item

LEVELS = 4
DECLARATIONS = {name: tool.declaration() for name, tool in TOOLS.items()}
Calls = list[tuple[str, dict[str, Any]]]


def _filled(template: str, fields: dict[str, str]) -> str:
    for key, value in fields.items():
        template = template.replace("{" + key + "}", value)
    return template


def opening(wish: Wish, world: World, level: int) -> str:
    """The words in which the user first says it. From level 2 on the card is not named."""
    fields = dict(wish.fields)
    if "card" in fields:
        fields["card"] = {0: f"card {fields['card']}", 1: f"card, {wish.facts['card']},"}.get(level, "card")
    if wish.family in ("block_card", "lost_card") and "reason" in fields:
        fields["reason"] = fields["reason"].replace("_", " ")
    return _filled(world.r.choice(world.words.openings[wish.family]), fields).replace(",.", ".").replace(",?", "?")


def told(world: World) -> str:
    """The sentence that says who calls."""
    fields = {"customer_id": world.customer_id, "code_word": world.me["code_word"]}
    return _filled(world.r.choice(world.words.told), fields)


def identified(world: World, calls: Calls) -> Calls:
    """`calls` after the identity check."""
    check = {"customer_id": world.customer_id, "code_word": world.me["code_word"]}
    return [("verify_identity", check), *calls]


def example(w: Words, family: int) -> list[Item]:
    """A conversation of the easiest kind, as the turns of a prompt. It ends before the user's goodbye: the user who comes next opens
    a conversation of its own."""
    world = World(random.Random(f"example/{w.parity}/{family}"), w, by_id=True)
    wish = EASY[family](world)
    bank = Bank(Database.model_validate(world.tables))
    turn: list[Item] = [{"role": "assistant", "content": "I do that now."}]
    outputs: list[Item] = []
    for number, (name, arguments) in enumerate(identified(world, wish.calls)):
        call_id, text = f"example_{number}", orjson.dumps(arguments).decode()
        turn.append({"type": "function_call", "call_id": call_id, "name": name, "arguments": text})
        output = orjson.dumps(apply(bank, name, arguments)).decode()
        outputs.append({"type": "function_call_output", "call_id": call_id, "output": output})
    user = {"role": "user", "content": f"{opening(wish, world, 0)} {told(world)}"}
    return [user, *turn, *outputs, {"role": "assistant", "content": "It is done. Is there anything else?"}]


def shown_tools(level: int, wishes: Sequence[Wish], r: random.Random) -> list[str]:
    """Names of the tools that the agent is given, in the desk's order."""
    if level >= 2:
        return list(TOOLS)
    shown = {"verify_identity", *wishes[0].tools}
    if level == 0:
        shown -= {"list_cards", "list_accounts"}
    else:
        shown |= {"record_refusal", *r.sample(["block_card", "unblock_card", "update_address", "set_card_limit"], 2)}
    return [name for name in TOOLS if name in shown]


def task(r: random.Random, w: Words, level: int, number: int) -> dict[str, Any]:
    """The row without its id."""
    world = World(r, w, by_id=level == 0)
    if level == 3 and number % 2:
        families = [FIRST_OF_TWO[number // 2 % len(FIRST_OF_TWO)], r.choice(SECOND_OF_TWO)]
    else:
        choices = {0: EASY, 1: SIMPLE}.get(level, ALL)
        families = [choices[(number // 2 if level == 3 else number) % len(choices)]]
    wishes = [family(world) for family in families]
    world.others((0, 1, 2, 4)[level])
    _shuffle(world)

    calls = [call for wish in wishes for call in wish.calls]
    facts = {"name": world.me["name"], "date_of_birth": world.me["date_of_birth"], "code_word": world.me["code_word"]}
    unknown = []
    if level < 3 or number % 4 < 2:
        facts["customer_id"] = world.customer_id
    else:
        unknown.append("customer number")
    forgets = level >= 2 and len(wishes) == 1 and number % 13 == 3 and wishes[0].needs_identity
    if forgets:  # who it is cannot be shown, so nothing is done
        del facts["code_word"]
        unknown.append("code word")
        calls = refuse("identity_not_verified")
    elif wishes[0].needs_identity:
        calls = identified(world, calls)

    goals = []
    for place, wish in enumerate(wishes):
        said = opening(wish, world, level)
        goals.append({"opening": said, "restated": said, "facts": wish.facts})
        if level < 2 and place == 0:
            goals[0]["opening"] = f"{said} {told(world)}"
    names = shown_tools(level, wishes, r)
    text = policy(names)
    given = example(w, number % len(EASY)) if level == 0 else []
    rules = {name: list(phrases) for name, phrases in w.phrases.items()}
    return {
        "responses_create_params": {
            "input": [{"role": "system", "content": system_prompt(text)}, *given],
            "tools": [DECLARATIONS[name] for name in names],
        },
        "policy": text,
        "customer_scenario": scenario(goals, facts, unknown),
        "user": {"goals": goals, "facts": facts, "phrases": rules, "seed": r.randrange(1 << 30)},
        "database": world.tables,
        "ground_truth": [{"name": name, "arguments": arguments} for name, arguments in calls],
        "family": "+".join([*(family.__name__ for family in families), *(["forgotten"] if forgets else [])]),
        "level": level,
        "difficulty": round((level + min(len(calls), 5) / 6) / LEVELS, 3),
    }


def _shuffle(world: World) -> None:
    """What is asked for must not be known by its place."""
    for name, rows in world.tables.items():
        keys = list(rows)
        world.r.shuffle(keys)
        world.tables[name] = {key: rows[key] for key in keys}


def scenario(goals: Sequence[dict[str, Any]], facts: dict[str, str], unknown: Sequence[str]) -> dict[str, Any]:
    """The same user in the words of published rows, for a model that plays it."""
    known = {**facts, **{key: value for goal in goals for key, value in goal["facts"].items()}}
    return {
        "reason_for_contact": " Then: ".join(goal["restated"] for goal in goals),
        "customer_details": "; ".join(f"{key.replace('_', ' ')}: {value}" for key, value in known.items()),
        "unknown_info": ", ".join(unknown) or None,
        "task_instructions": "Say who you are, and details, only when you are asked.",
    }


def generate(n: int, seed: int, split: Split) -> Iterator[dict[str, Any]]:
    """`n` rows; row k is a function of (k, seed, split). Levels take turns."""
    w = words(split)
    for k in range(n):
        row = task(random.Random(f"banking/{seed}/{split}/{k}"), w, k % LEVELS, k // LEVELS)
        yield {
            "task_id": f"banking-{split}-{seed}-{k}",
            "agent_ref": {"type": "responses_api_agents", "name": "banking"},
            **row,
        }
