"""`GET /openapi.json` describes what is served; whatever is sent to what it describes, no answer is a 500."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kit_toys import Shortest, TillEnvironment, installed, serving
from schemathesis import Case, GenerationMode

from gym_servers.base import ServerSettings
from gym_servers.environment import Environment
from gym_servers.openapi import gaps, openapi
from gym_servers.registry import environment_names, load_environment
from gym_servers.resources import build_resources


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """All installed environments and two toys, one with a state and tools, one with group rewards."""
    with installed(tmp_path_factory.mktemp("toys")):
        names = [name for name in environment_names() if not name.startswith("kit_")]
        environments: list[Environment] = [*map(load_environment, names), TillEnvironment(), Shortest()]
        with serving(build_resources(environments, workers=1)) as url:
            yield url


def test_the_document_has_every_path_with_its_rows_tools_and_errors() -> None:
    document = openapi([load_environment("competition_math"), TillEnvironment(), Shortest()])
    silent = [tool.name for tool in TillEnvironment().tools() if not tool.description]
    assert gaps(document) == [f"POST /kit_till/{name} has no summary: give the tool a docstring" for name in silent]
    assert set(document["paths"]) == {
        "/environments",
        *(f"/competition_math/{path}" for path in ("verify", "seed_session", "tools")),
        *(f"/kit_till/{path}" for path in ("verify", "seed_session", "tools")),
        *(f"/kit_till/{tool}" for tool in ("deposit", "balance", "crash", "weekday", "meet", "take_turns")),
        *(f"/kit_shortest/{path}" for path in ("verify", "verify_group", "seed_session", "tools")),
    }
    verify = document["paths"]["/competition_math/verify"]["post"]
    assert set(verify["responses"]) == {"200", "400", "401", "413", "422", "503"}
    row, more = verify["requestBody"]["content"]["application/json"]["schema"]["allOf"]
    assert more["required"] == ["response"]
    fields = document["components"]["schemas"][row["$ref"].rsplit("/", 1)[1]]
    assert fields["required"] == ["expected_answer"] and "question" in fields["properties"]
    deposit = document["paths"]["/kit_till/deposit"]["post"]
    arguments = deposit["requestBody"]["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[1]
    assert document["components"]["schemas"][arguments]["properties"]["amount"]["type"] == "integer"
    assert deposit["parameters"][0]["name"] == "X-Session-Id"
    json.dumps(document)


def test_it_is_served_to_who_has_the_token() -> None:
    app = build_resources([TillEnvironment()], ServerSettings(token="t"), workers=1)
    with serving(app) as url:
        assert httpx.get(f"{url}/openapi.json").status_code == 401
        reply = httpx.get(f"{url}/openapi.json", headers={"Authorization": "Bearer t"})
        assert reply.status_code == 200 and reply.json() == openapi([TillEnvironment()])


NESTED = {
    "deep lists": "[" * 300 + "]" * 300,
    "deeper lists": "[" * 990 + "]" * 990,
    "deepest lists": "[" * 100_000 + "]" * 100_000,
    "deep objects": '{"a":' * 400 + "1" + "}" * 400,
    "a surrogate": '"\\ud800"',
    "a number of 5,000 digits": "9" * 5000,
    "not a number": "NaN",
    "a huge float": "1e999",
}


@pytest.mark.parametrize("what", NESTED)
@pytest.mark.parametrize("path", ["competition_math/verify", "kit_till/seed_session", "kit_till/deposit"])
def test_hostile_json_is_refused_or_graded(server: str, path: str, what: str) -> None:
    item = f'{{"type": "message", "role": "assistant", "content": "4", "x": {NESTED[what]}}}'
    row = '"expected_answer": "4", "start": 0, "target": 1'
    for body in (
        f'{{{row}, "x": {NESTED[what]}, "response": {{"output": []}}}}',
        f'{{{row}, "response": {{"output": [{item}]}}}}',
    ):
        reply = httpx.post(f"{server}/{path}", content=body, headers={"Content-Type": "application/json"})
        assert reply.status_code in (200, 422), reply.text[:300]
    assert httpx.get(f"{server}/healthz").status_code == 200


def fuzz(server: str, examples: int, tools: bool) -> Counter[tuple[str, int]]:
    """To every operation (tools: those of tools too), requests that fit the document and such that do not; how often each status came, by path."""
    schema = schemathesis.openapi.from_url(f"{server}/openapi.json")
    statuses: Counter[tuple[str, int]] = Counter()
    for made in schema.get_all_operations():
        operation = made.ok()
        if not tools and operation.path.rsplit("/", 1)[1] not in (
            "verify",
            "verify_group",
            "seed_session",
            "user_turn",
        ):
            continue
        fitting = operation.as_strategy(GenerationMode.POSITIVE)
        body = operation.method.upper() == "POST"  # nothing of a GET without parameters can be wrong
        cases = st.one_of(fitting, operation.as_strategy(GenerationMode.NEGATIVE)) if body else fitting

        @settings(
            max_examples=examples if body else 1,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        @given(cases)
        def one(case: Case) -> None:
            reply = case.call(timeout=120)
            statuses[case.operation.path, reply.status_code] += 1
            assert reply.status_code != 500, (case.operation.path, case.body, reply.text)
            assert reply.status_code < 400 or reply.json()["error"]["message"]

        one()
    return statuses


def check_fuzzed(server: str, examples: int, tools: bool) -> None:
    statuses = fuzz(server, examples, tools)
    paths = {path for path, _ in statuses}
    every = set(httpx.get(f"{server}/openapi.json").json()["paths"])
    assert paths == every if tools else {"/competition_math/verify", "/kit_shortest/verify_group"} < paths < every
    codes = {code for _, code in statuses}
    assert {200, 422} <= codes <= {200, 400, 401, 404, 405, 413, 415, 422, 503}
    assert httpx.get(f"{server}/healthz").status_code == 200


def test_no_request_is_answered_500(server: str) -> None:
    check_fuzzed(server, 4, tools=False)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_request_of_many_is_answered_500(server: str) -> None:
    check_fuzzed(server, 30, tools=True)
