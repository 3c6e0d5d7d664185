"""Signed ids: of a rollout in a URL (`/r/<signed id>/v1`), of a session in a cookie. Each reaches its own and nobody else's.

The form is `base64url(id).base64url(first 16 bytes of HMAC-SHA256(secret, id))`, without padding. And sealed values, which come back from
a store that others could write to: their HMAC-SHA256 before them.
"""

from __future__ import annotations

import base64
import binascii
import hmac

from gym_servers.protocol import OmnigymError

MAX_ID_BYTES = 512
TAG_BYTES = 16
SEAL_BYTES = 32


class SignatureError(OmnigymError):
    """A signed id that this deployment did not make."""


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _tag(body: bytes, secret: str) -> bytes:
    return hmac.digest(secret.encode(), body, "sha256")[:TAG_BYTES]


def _sign(text: str, secret: str) -> str:
    body = text.encode()
    if not 0 < len(body) <= MAX_ID_BYTES:
        raise SignatureError(f"an id has 1 to {MAX_ID_BYTES} bytes, this one has {len(body)}")
    return f"{_encode(body)}.{_encode(_tag(body, secret))}"


def _check(signed: str, secret: str, what: str, fix: str) -> str:
    body, _, tag = signed.partition(".")
    try:
        raw = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
        given = base64.b64decode(tag + "=" * (-len(tag) % 4), altchars=b"-_", validate=True)
        text = raw.decode()
    except (binascii.Error, ValueError):
        raise SignatureError(f"the {what} is malformed: {fix}") from None
    if len(raw) > MAX_ID_BYTES or not hmac.compare_digest(given, _tag(raw, secret)):
        raise SignatureError(f"the {what} is not signed by this deployment: {fix}")
    return text


def sign_rollout_id(rollout_id: str, secret: str) -> str:
    """`rollout_id` with its tag, safe in a URL path. Raises SignatureError for an id that is empty or too long."""
    return _sign(rollout_id, secret)


def check_rollout_id(signed: str, secret: str) -> str:
    """The rollout id inside `signed`. Raises SignatureError where the tag is not ours."""
    return _check(signed, secret, "rollout id in the URL", "use the base URL that the collector gave")


def sign_session_id(name: str, secret: str) -> str:
    """`name` with its tag, safe in a cookie. It is no rollout id, though one secret signs both."""
    return _sign(name, f"session/{secret}")


def check_session_id(signed: str, secret: str) -> str:
    """The session's name inside `signed`. Raises SignatureError where the tag is not ours."""
    return _check(signed, f"session/{secret}", "session id", "seed_session gives out another")


def _seal_tag(content: bytes, what: str, secret: str) -> bytes:
    return hmac.digest(f"seal/{secret}".encode(), what.encode() + b"\0" + content, "sha256")


def seal(content: bytes, what: str, secret: str) -> bytes:
    """`content` with a tag that says that this deployment wrote it as `what` (a name without NUL), and as nothing else."""
    return _seal_tag(content, what, secret) + content


def unseal(sealed: bytes, what: str, secret: str) -> bytes:
    """The content. Raises SignatureError where it was not sealed as `what` by a holder of `secret`."""
    tag, content = sealed[:SEAL_BYTES], sealed[SEAL_BYTES:]
    if not hmac.compare_digest(tag, _seal_tag(content, what, secret)):
        raise SignatureError("it was changed, or written with another OMNIGYM_SECRET")
    return content
