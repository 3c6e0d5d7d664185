"""Check of a simulated user: it opens the conversation, answers whatever it is told, and never fails."""

from __future__ import annotations

from gym_servers.checks.bench import Bench, Finding, NotAsked, Task, found
from gym_servers.environment import ConversationEnvironment, Said, UserTurn
from gym_servers.protocol import OmnigymError

TOLD = ["How can I help you?", "I see.", "", "x" * 10_000, "\x00 {item} %s \\", "Is there anything else?"]
"""What the agent says in turn; between them nothing is done for the user."""


async def check_user(bench: Bench, tasks: list[Task]) -> Finding:
    """A conversation on every task, up to the environment's `max_turns`."""
    environment = bench.environment
    assert isinstance(environment, ConversationEnvironment)
    problems, skipped, turns = list[str](), list[NotAsked](), 0
    for task in tasks:
        try:
            state = environment.seed(environment.check_row(task.row))
            said: list[Said] = []
            for number in range(environment.settings.max_turns):
                turn = await environment.user_turn(state, said)
                turns += 1
                if not isinstance(turn, UserTurn) or not (turn.message.strip() or turn.done):
                    problems.append(f"{task.name}, turn {number + 1}: neither words nor the end: {turn!r}")
                if not number and turn.done:
                    problems.append(f"{task.name}: the user ends the conversation before it began")
                if turn.done:
                    break
                told = TOLD[number % len(TOLD)]
                said += [Said(role="user", content=turn.message), Said(role="assistant", content=told)]
        except OmnigymError as error:
            outcome = bench.explain(error)
            if isinstance(outcome, NotAsked):
                skipped.append(outcome)
            else:
                problems.append(f"{task.name}: {error}")
        except Exception as error:  # a server would answer 503, and the rollout be lost
            problems.append(f"{task.name}: {type(error).__name__}: {error}")
    return found("simulated user", problems, f"{len(tasks)} conversations, {turns} turns", skipped, len(tasks))
