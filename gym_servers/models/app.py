"""The model server: OpenAI's API over an engine, with a ledger behind every rollout's own base URL.

`/r/<signed rollout id>/v1` is a base URL for any OpenAI client: what it samples there enters that rollout's ledger; `POST
/r/<id>/close` returns the ledger in binary and drops it. `/v1` has no ledger (judges, evaluation by hand). A weight update stops
admission, ends what is open, and loads; one that fails poisons the server, which then serves nothing. Streaming is left out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, ConfigDict, ValidationError

from gym_servers.base import Guard, ServerSettings, answer, build, read_object
from gym_servers.models.converter import chat_to_response, responses_to_chat
from gym_servers.models.engine import Engine, Generation, Sampling, WeightsRefused
from gym_servers.models.ledger import Ledger, Prompt
from gym_servers.models.parsers import parse_turn
from gym_servers.models.template import ChatTemplate
from gym_servers.models.wire import pack_ledger
from gym_servers.protocol import Failure, FailureError, Item, OmnigymError, RowError
from gym_servers.signing import check_rollout_id

NEUTRAL = {
    "top_p": (None, 1, 1.0),
    "top_k": (None, 0, -1),
    "min_p": (None, 0, 0.0),
    "repetition_penalty": (None, 1, 1.0),
}
DRAIN_SECONDS = 60.0


class ModelSettings(BaseModel):
    """secret signs rollout ids. Ledgers that nobody used for ledger_ttl seconds are dropped."""

    model_config = ConfigDict(extra="forbid")
    secret: str
    default_max_tokens: int = 1024
    ledger_ttl: float = 7200.0
    max_ledgers: int = 100_000
    reasoning: bool | None = None
    """None: a model without reasoning. A request may say so itself (`chat_template_kwargs.reasoning`)."""


@dataclass
class Open:
    """A rollout's ledger and when it was last used."""

    ledger: Ledger
    touched: float = field(default_factory=time.monotonic)


@dataclass
class Answered:
    """One finished call."""

    message: Item
    finish_reason: str
    prompt_ids: list[int]
    generation: Generation
    reasoning: bool


class ModelServer:
    """The state behind the routes."""

    def __init__(self, engine: Engine, settings: ModelSettings) -> None:
        self.engine = engine
        self.settings = settings
        self.template = ChatTemplate(engine.chat_template)
        self.ledgers: dict[str, Open] = {}
        self.open_calls: set[str] = set()
        self.updating = False
        self.requests = 0

    def check_admission(self) -> None:
        """Raises FailureError while weights change, or after an update failed."""
        if self.engine.state.poisoned:
            message = f"a weight update failed, the engine must be restarted: {self.engine.state.poisoned}"
            raise FailureError(Failure(kind="model_error", message=message, retryable=False))
        if self.updating:
            raise FailureError(Failure(kind="model_error", message="weights are being updated"))

    def opened(self, rollout_id: str) -> Open:
        """The ledger of a rollout, made on its first call. Raises FailureError when there are too many."""
        found = self.ledgers.get(rollout_id)
        if found is None:
            if len(self.ledgers) >= self.settings.max_ledgers:
                self.reap()
            if len(self.ledgers) >= self.settings.max_ledgers:
                message = f"{len(self.ledgers)} rollouts are open: close them, or raise max_ledgers"
                raise FailureError(Failure(kind="model_error", message=message))
            found = self.ledgers[rollout_id] = Open(Ledger(rollout_id))
        found.touched = time.monotonic()
        return found

    def reap(self) -> None:
        """Drop ledgers that nobody used for ledger_ttl seconds."""
        limit = time.monotonic() - self.settings.ledger_ttl
        for key in [key for key, value in self.ledgers.items() if value.touched < limit]:
            del self.ledgers[key]

    async def complete(self, body: Item, opened: Open | None) -> Answered:
        """One chat completion. Raises FailureError where the call was ended by an update."""
        self.check_admission()
        messages: list[Item] = body["messages"]
        tools: list[Item] | None = body.get("tools") or None
        reasoning = (body.get("chat_template_kwargs") or {}).get("reasoning", self.settings.reasoning)
        policy = opened is not None
        ledger = opened.ledger if opened is not None else Ledger("")
        check_sampling(body, policy)

        def render(part: Sequence[Item], generation: bool, raw: dict[int, str]) -> str:
            return self.template.render(part, tools, reasoning=reasoning, generation=generation, raw=raw)

        tokenizer = self.engine.tokenizer
        prompt = ledger.prompt(messages, render, tokenizer)
        temperature = 1.0 if body.get("temperature") is None else float(body["temperature"])
        room = self.engine.max_context - len(prompt.ids)
        number = ledger.open_call(temperature)
        if room < 1:
            ledger.truncation_reason = "context"
            empty = Generation([], [], "length", (self.engine.state.weight_version,))
            return Answered({"role": "assistant", "content": ""}, "context", prompt.ids, empty, reasoning is not None)
        asked = body.get("max_completion_tokens") or body.get("max_tokens") or self.settings.default_max_tokens
        sampling = Sampling(
            max_tokens=max(1, min(int(asked), room)),
            temperature=temperature,
            top_p=float(body.get("top_p") or 1.0),
            top_k=max(0, int(body.get("top_k") or 0)),
            stop=(body["stop"],) if isinstance(body.get("stop"), str) else tuple(body.get("stop") or ()),
        )
        seed = (int(body.get("seed") or 0) + 1_000_003 * number) % 2**31
        generation = await self._generate(prompt, sampling, seed)
        text = tokenizer.decode(generation.token_ids).removesuffix(tokenizer.end_token)
        raw = self.template.generation_prefix(reasoning) + text
        turn = parse_turn(raw, tools, reasoning=reasoning is not None)
        message: Item = {"role": "assistant", "content": turn.content}
        if turn.reasoning:
            message["reasoning_content"] = "\n".join(turn.reasoning)
        if turn.calls:
            message["tool_calls"] = [
                {"id": f"call_{number}_{k}", "type": "function", "function": {"name": name, "arguments": arguments}}
                for k, (name, arguments) in enumerate(turn.calls)
            ]
        ended = generation.finish_reason == "abort" or len(generation.weight_versions) != 1
        if ended and generation.finish_reason != "abort":  # sampled under two versions: no token of it can be trained
            generation = Generation(generation.token_ids, generation.logprobs, "abort", generation.weight_versions)
        ledger.record(messages, message, prompt, raw, generation)
        if ended:
            raise FailureError(Failure(kind="version_straddled", message="the call was ended by a weight update"))
        if generation.finish_reason == "length":
            ledger.truncation_reason = "max_tokens"
        finish = "tool_calls" if turn.calls and generation.finish_reason == "stop" else generation.finish_reason
        return Answered(message, finish, prompt.ids, generation, reasoning is not None)

    async def _generate(self, prompt: Prompt, sampling: Sampling, seed: int) -> Generation:
        self.requests += 1
        request_id = f"call-{self.requests}"
        self.open_calls.add(request_id)
        try:
            return await self.engine.generate(prompt.ids, sampling, seed, request_id)
        finally:
            self.open_calls.discard(request_id)

    async def update(self, path: str, digest: str, version: int) -> None:
        """Replace the weights. Raises OmnigymError where they were refused, FailureError where the engine is lost."""
        self.check_admission()
        self.updating = True
        try:
            deadline = time.monotonic() + DRAIN_SECONDS
            while self.open_calls:
                await self.engine.abort(sorted(self.open_calls))
                await asyncio.sleep(0.01)
                if time.monotonic() > deadline:
                    raise OmnigymError(
                        f"{len(self.open_calls)} calls did not end within {DRAIN_SECONDS:g} s of an abort"
                    )
            await self.engine.update_weights(path, digest, version)
        except WeightsRefused:
            raise
        except OmnigymError as error:
            self.engine.state.poisoned = str(error)
            raise FailureError(Failure(kind="model_error", message=str(error), retryable=False)) from error
        except BaseException as error:
            self.engine.state.poisoned = f"{type(error).__name__}: {error}"
            message = self.engine.state.poisoned
            raise FailureError(Failure(kind="model_error", message=message, retryable=False)) from error
        finally:
            self.updating = False


def check_sampling(body: Item, policy: bool) -> None:
    """Raises OmnigymError on what is not served, and on what would make the policy's log-probabilities another model's."""
    if body.get("n") not in (None, 1):
        raise OmnigymError("field 'n': one answer per request; send several requests")
    if body.get("stream"):
        raise OmnigymError("field 'stream': streaming is not served")
    if not policy:
        return
    if body.get("stop"):
        raise OmnigymError(
            "field 'stop': stop strings cut tokens that were sampled, and the policy is trained on all of them"
        )
    for name, neutral in NEUTRAL.items():
        if body.get(name) not in neutral:
            raise OmnigymError(f"field '{name}': must be off for the policy, whose trainer computes a full softmax")
    if body.get("temperature") is not None and float(body["temperature"]) <= 0:
        raise OmnigymError("field 'temperature': must be above 0 for the policy")


def chat_body(done: Answered, model: str, token_fields: bool) -> Item:
    """A chat completion."""
    n, m = len(done.prompt_ids), len(done.generation.token_ids)
    message = dict(done.message)
    if token_fields:
        message["prompt_token_ids"] = done.prompt_ids
        message["generation_token_ids"] = done.generation.token_ids
        message["generation_log_probs"] = done.generation.logprobs
    finish = "length" if done.finish_reason == "context" else done.finish_reason
    body: Item = {
        "id": f"chatcmpl-{time.time_ns():x}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": finish, "logprobs": None}],
        "usage": {"prompt_tokens": n, "completion_tokens": m, "total_tokens": n + m},
    }
    if done.finish_reason == "context":
        body["incomplete_details"] = {"reason": "context"}
    return body


class Update(BaseModel):
    """Body of /admin/update_weights."""

    model_config = ConfigDict(extra="forbid")
    path: str
    digest: str
    version: int


def build_model_server(engine: Engine, settings: ModelSettings, server: ServerSettings | None = None) -> Guard:
    """The ASGI app over `engine`."""
    state = ModelServer(engine, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async def sweep() -> None:
            while True:
                await asyncio.sleep(min(60.0, settings.ledger_ttl))
                state.reap()

        task = asyncio.create_task(sweep())
        yield
        task.cancel()
        await engine.close()

    app = FastAPI(title="omnigym model server", lifespan=lifespan, openapi_url=None)

    def opened(request: Request) -> Open | None:
        signed = request.path_params.get("signed")
        return None if signed is None else state.opened(check_rollout_id(signed, settings.secret))

    async def chat_completions(request: Request) -> Response:
        body = await read_object(request)
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
            raise RowError("field 'messages' must be a list of messages")
        done = await state.complete(body, opened(request))
        return answer(chat_body(done, engine.state.model, bool(body.get("return_token_ids"))))

    async def responses(request: Request) -> Response:
        body = await read_object(request)
        tokens = bool(body.pop("return_token_ids", False))
        ours: Item = {key: body.pop(key) for key in ("seed", "chat_template_kwargs") if key in body}
        done = await state.complete({**responses_to_chat(body), **ours}, opened(request))
        completion = chat_body(done, engine.state.model, tokens)
        return answer(chat_to_response(completion, reasoning=done.reasoning, token_fields=tokens, request=body))

    async def close(request: Request) -> Response:
        rollout_id = check_rollout_id(request.path_params["signed"], settings.secret)
        found = state.ledgers.pop(rollout_id, None) or Open(Ledger(rollout_id))
        return Response(pack_ledger(found.ledger.export()), media_type="application/octet-stream")

    # Starlette's own routes, the busiest first: FastAPI's cost 0.05 ms each for parameters that nobody has here.
    app.add_route("/r/{signed}/v1/responses", responses, methods=["POST"])
    app.add_route("/r/{signed}/close", close, methods=["POST"])
    app.add_route("/r/{signed}/v1/chat/completions", chat_completions, methods=["POST"])
    app.add_route("/v1/responses", responses, methods=["POST"])
    app.add_route("/v1/chat/completions", chat_completions, methods=["POST"])

    @app.post("/tokenize")
    async def tokenize(request: Request) -> Response:
        body = await read_object(request)
        text = str(body.get("prompt", ""))
        if "messages" in body:
            text = state.template.render(
                body["messages"],
                body.get("tools"),
                reasoning=settings.reasoning,
                generation=bool(body.get("add_generation_prompt", True)),
            )
        ids = engine.tokenizer.encode(text)
        return answer({"tokens": ids, "count": len(ids), "max_model_len": engine.max_context})

    @app.get("/v1/models")
    async def models() -> Response:
        return answer(
            {"object": "list", "data": [{"id": engine.state.model, "object": "model", "owned_by": "omnigym"}]}
        )

    @app.get("/admin/state")
    async def admin_state() -> Response:
        found = engine.state
        return answer(
            {
                "model": found.model,
                "dtype": found.dtype,
                "weight_version": found.weight_version,
                "digest": found.digest,
                "updates": found.updates,
                "poisoned": found.poisoned,
                "ledgers": len(state.ledgers),
                "open_calls": len(state.open_calls),
            }
        )

    @app.post("/admin/update_weights")
    async def update_weights(request: Request) -> Response:
        try:
            update = Update.model_validate(await read_object(request))
        except ValidationError as error:
            raise RowError(f"update_weights: field {error.errors()[0]['loc']}: {error.errors()[0]['msg']}") from None
        await state.update(update.path, update.digest, update.version)
        return await admin_state()

    @app.post("/admin/score")
    async def score(request: Request) -> Response:
        state.check_admission()
        sequences = (await read_object(request)).get("token_ids")
        if not isinstance(sequences, list) or not all(isinstance(ids, list) and len(ids) > 1 for ids in sequences):
            raise RowError("field 'token_ids' must be a list of sequences of at least two tokens")
        return answer({"logprobs": await engine.score(sequences)})

    return build(app, server or ServerSettings())
