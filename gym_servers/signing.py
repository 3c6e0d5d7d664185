"""Rollout ids that a client can carry in a URL and cannot make up: `<id>.<HMAC-SHA256>`, URL-safe."""

from __future__ import annotations

import base64
import hashlib
import hmac

from gym_servers.protocol import OmnigymError


class BadSignature(OmnigymError):
    """An id that this deployment did not sign."""


def _mac(text: str, secret: str) -> str:
    digest = hmac.new(secret.encode(), text.encode(), hashlib.sha256).digest()
    return base64.urlsafe_b64encode(digest[:24]).decode()


def sign_rollout_id(rollout_id: str, secret: str) -> str:
    """`rollout_id` with its signature, safe in a URL's path."""
    text = base64.urlsafe_b64encode(rollout_id.encode()).decode().rstrip("=")
    return f"{text}.{_mac(text, secret)}"


def check_rollout_id(signed: str, secret: str) -> str:
    """The rollout id inside. Raises BadSignature."""
    text, _, mac = signed.partition(".")
    if not hmac.compare_digest(mac.encode(), _mac(text, secret).encode()):
        raise BadSignature("the rollout id in the URL is not signed by this deployment: ask the run for a new URL")
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
