"""The model server: OpenAI's API over an engine, with a ledger behind every rollout's own base URL.

`/r/<signed rollout id>/v1` is a base URL for any OpenAI client: what it samples there enters that rollout's ledger; `POST
/r/<id>/close` returns the ledger in binary and drops it. `/v1` has no ledger (judges, evaluation by hand). A weight update stops
admission, ends what is open, and loads; one that fails poisons the server, which then serves nothing. Streaming is left out.
calls.py has the calls and their state, requests.py what a request may ask, serving.py the process.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, ConfigDict, ValidationError

from gym_servers.base import Guard, ServerSettings, answer, build, read_object
from gym_servers.checkpoints import checkpoint_digest
from gym_servers.idempotency import Once
from gym_servers.models.calls import Answered, ModelServer, ModelSettings, Open
from gym_servers.models.converter import chat_to_response, responses_to_chat
from gym_servers.models.engine import Engine
from gym_servers.models.requests import Switches, switches
from gym_servers.protocol import Item, RowError
from gym_servers.signing import check_rollout_id

__all__ = ["ModelSettings", "build_model_server"]


def chat_body(done: Answered, model: str, token_fields: bool) -> Item:
    """A chat completion."""
    n, m = len(done.prompt_ids), len(done.generation.token_ids)
    message = dict(done.message)
    if token_fields:
        message["prompt_token_ids"] = done.prompt_ids
        message["generation_token_ids"] = done.generation.token_ids
        message["generation_log_probs"] = done.generation.logprobs
        if done.generation.written:
            message["generation_loss_mask"] = done.generation.mask
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


async def disconnected(request: Request) -> None:
    """Returns when the client of `request`, whose body was read, is gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def answered_once(request: Request, answers: Once[Response], make: Callable[[], Awaitable[Response]]) -> Response:
    """The stored answer where `request` repeats a call, else what `make()` gives.

    Our own client repeats a call under its Idempotency-Key. The openai client sends none, but the same body and how often it tried
    before (X-Stainless-Retry-Count): from 1 on it is the latest call with that body that is meant.
    """
    key = request.headers.get("idempotency-key")
    tried = request.headers.get("x-stainless-retry-count")
    if key is None and tried is not None:
        key = hashlib.sha256(await request.body()).hexdigest()
        if tried == "0":
            answers.forget(key)
    return await answers(key, make)


class Update(BaseModel):
    """Body of /admin/update_weights."""

    model_config = ConfigDict(extra="forbid")
    path: str
    digest: str
    version: int
    rehearsal: bool = False
    back: bool = False


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

    async def served(request: Request, make: Callable[[Open | None], Awaitable[Response]]) -> Response:
        signed = request.path_params.get("signed")
        if signed is None:
            return await make(None)
        found = state.opened(check_rollout_id(signed, settings.secret))
        return await answered_once(request, found.answers, partial(make, found))

    async def chat_completions(request: Request) -> Response:
        body = await read_object(request)
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
            raise RowError("field 'messages' must be a list of messages")

        async def make(found: Open | None) -> Response:
            done = await state.complete(body, found, partial(disconnected, request))
            return answer(chat_body(done, engine.state.model, bool(body.get("return_token_ids"))))

        return await served(request, make)

    async def responses(request: Request) -> Response:
        body = await read_object(request)
        tokens = bool(body.pop("return_token_ids", False))
        ours: Item = {key: body.pop(key) for key in ("seed", "chat_template_kwargs") if key in body}
        chat = {**responses_to_chat(body, token_fields=True), **ours}

        async def make(found: Open | None) -> Response:
            done = await state.complete(chat, found, partial(disconnected, request))
            completion = chat_body(done, engine.state.model, tokens)
            return answer(chat_to_response(completion, reasoning=False, token_fields=tokens, request=body))

        return await served(request, make)

    async def close(request: Request) -> Response:
        packed = await state.close(check_rollout_id(request.path_params["signed"], settings.secret))
        return Response(packed, media_type="application/octet-stream")

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
                reasoning=switches(body, Switches(settings.reasoning, None)).reasoning,
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

    @app.get("/admin/weights")
    async def admin_weights() -> Response:
        """Which weights are served, by their digest: of the last update, else of the checkpoint; "" where there is none."""
        folder = Path(engine.state.model)
        digest = engine.state.digest
        if not digest and (folder / "config.json").is_file():
            digest = await asyncio.to_thread(checkpoint_digest, folder)
        return answer({"digest": digest})

    @app.post("/admin/update_weights")
    async def update_weights(request: Request) -> Response:
        try:
            update = Update.model_validate(await read_object(request))
        except ValidationError as error:
            raise RowError(f"update_weights: field {error.errors()[0]['loc']}: {error.errors()[0]['msg']}") from None
        await state.update(update.path, update.digest, update.version, update.rehearsal, update.back)
        return await admin_state()

    @app.post("/admin/score")
    async def score(request: Request) -> Response:
        sequences = (await read_object(request)).get("token_ids")
        if not isinstance(sequences, list) or not all(isinstance(ids, list) and len(ids) > 1 for ids in sequences):
            raise RowError("field 'token_ids' must be a list of sequences of at least two tokens")
        return answer({"logprobs": await state.score(sequences)})

    return build(app, server or ServerSettings(), state.check_ready)
