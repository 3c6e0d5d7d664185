"""A model server over any OpenAI-compatible URL, for judges and user simulators: no tokens, no ledger, never for the policy.

`/v1/responses` and `/v1/chat/completions` both become `POST {url}/chat/completions`; what only one of the two forms can say is
converted (converter.py). The API key comes from an environment variable. 408, 409, 429, 5xx and broken connections are tried
again, with growing waits or the upstream's Retry-After, within the deadline that the caller sends (X-Deadline-Seconds) and
`seconds`. Any other refusal is the caller's: 400 with the upstream's words. Streaming is left out.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from gym_servers.base import Guard, ServerSettings, answer, build, read_object
from gym_servers.client import TRANSIENT, Client
from gym_servers.models.converter import chat_to_response, responses_to_chat
from gym_servers.models.serving import ListenSettings, part_of, run
from gym_servers.protocol import Failure, FailureError, Item, OmnigymError, RowError

OURS = ("seed", "chat_template_kwargs")
"""Fields of a Responses request that are no part of OpenAI's form and are passed on as they are."""


class UpstreamSettings(BaseModel):
    """url: base with `/v1`. model: name at the upstream, put in place of the request's. key_variable: environment variable with
    the API key; "" sends none. seconds: of one call, retries included. reasoning: `<think>` in answers is reasoning.
    """

    model_config = ConfigDict(extra="forbid")
    url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    seconds: float = Field(default=600.0, gt=0)
    retries: int = Field(default=6, ge=0)
    concurrency: int = Field(default=256, ge=1)
    reasoning: bool = False


def api_key(settings: UpstreamSettings) -> str | None:
    """The key. Raises OmnigymError where the variable is not set."""
    if not settings.key_variable:
        return None
    key = os.environ.get(settings.key_variable)
    if not key:
        raise OmnigymError(
            f"environment variable {settings.key_variable} is not set: it holds the API key of {settings.url}; "
            f"for a server without one set key_variable to ''"
        )
    return key


def build_openai_url(settings: UpstreamSettings, server: ServerSettings | None = None) -> Guard:
    """The ASGI app. Raises OmnigymError without an API key."""
    client = Client(
        token=api_key(settings), concurrency=settings.concurrency, retries=settings.retries, retried=TRANSIENT, wait=0.5
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with client:
            yield

    app = FastAPI(title="omnigym model server over a URL", lifespan=lifespan)

    async def ask(body: Item) -> Item:
        if body.get("stream"):
            raise OmnigymError("field 'stream': streaming is not served")
        body = {**body, "model": settings.model}
        url = f"{settings.url.rstrip('/')}/chat/completions"
        try:
            completion = (await client.post(url, body, seconds=settings.seconds, kind="model_error")).json()
        except RowError as error:
            raise OmnigymError(f"{url}: 422: {error}") from None
        except FailureError as error:
            if error.status is not None and 400 <= error.status < 500 and error.status not in TRANSIENT:
                raise OmnigymError(error.failure.message) from None
            raise
        choices = completion.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0].get("message"), dict):
            message = f"{url}: the answer has no choices[0].message: {str(completion)[:200]}"
            raise FailureError(Failure(kind="model_error", message=message))
        return completion

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return answer(await ask(await read_object(request)))

    @app.post("/v1/responses")
    async def responses(request: Request) -> Response:
        body = await read_object(request)
        ours: Item = {name: body.pop(name) for name in OURS if name in body}
        completion = await ask({**responses_to_chat(body), **ours})
        return answer(chat_to_response(completion, reasoning=settings.reasoning, request=body))

    @app.api_route("/r/{rest:path}", methods=["GET", "POST"])
    async def no_ledger(rest: str) -> Response:
        raise OmnigymError(
            f"this server keeps no ledger: it answers judges and simulators from {settings.url}, at /v1; a rollout's own "
            f"URL (/r/...) is for the policy's model server"
        )

    @app.get("/v1/models")
    async def models() -> Response:
        return answer({"object": "list", "data": [{"id": settings.model, "object": "model", "owned_by": settings.url}]})

    return build(app, server or ServerSettings())


class ServeSettings(UpstreamSettings, ListenSettings):
    """Settings of the server process, in one flat object."""


async def make(settings: ServeSettings) -> Guard:
    """The server over settings.url."""
    return build_openai_url(part_of(settings, UpstreamSettings), settings.server())


if __name__ == "__main__":
    run("openai_url", "Model server over an OpenAI-compatible URL", ServeSettings, make)
