"""Environments that somebody else serves at one URL, such as a gateway or `omnigym env serve` on another machine.

Nothing is started or stopped here. A server to which no connection can be made counts as dead; starting it again is waiting until
whoever runs it has done so. One that answers, whatever it says, or only slowly, is alive.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from urllib.parse import quote, urlsplit, urlunsplit

from gym_servers.hosts.servers import DIRECT, Environments, Server
from gym_servers.protocol import OmnigymError


class UrlServer(Server):
    """The server at `wanted.url`, whose token `wanted.token` is."""

    def __init__(self, wanted: Environments) -> None:
        assert wanted.url is not None, "the host 'url' needs the URL"
        super().__init__(f"the environment server at {wanted.url}", None, wanted.restarts)
        self.wanted = wanted
        self._known = False

    def start(self) -> None:
        self._known = False

    def address(self) -> str:
        assert self.wanted.url is not None
        return self.wanted.url.rstrip("/")

    def death(self) -> str:
        if not self._known:
            return ""  # it is waited for
        try:
            with DIRECT.open(f"{self.address()}/healthz", timeout=5):
                return ""
        except urllib.error.HTTPError:
            return ""
        except OSError as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            return "" if isinstance(reason, TimeoutError) else f"cannot be reached ({reason})"

    def ready(self) -> bool:
        """As of any server, and that it serves what is wanted. Raises OmnigymError where it does not."""
        self._known = self._known or (super().ready() and self._serves())
        return self._known

    def _serves(self) -> bool:
        headers = {"Authorization": f"Bearer {self.wanted.token}"}
        try:
            with DIRECT.open(
                urllib.request.Request(f"{self.address()}/environments", None, headers), timeout=30
            ) as got:
                there = {str(one["name"]) for one in json.load(got)}
        except urllib.error.HTTPError as error:
            if error.code in (502, 503, 504):
                return False
            hint = ": is OMNIGYM_ENVIRONMENTS_TOKEN its token?" if error.code in (401, 403) else ""
            raise OmnigymError(f"{self.name} answers {error.code} to GET /environments{hint}") from None
        except OSError:
            return False
        except (ValueError, KeyError, TypeError) as error:
            raise OmnigymError(f"{self.name} does not list its environments: {error}") from None
        missing = sorted(set(self.wanted.names) - there)
        if missing:
            raise OmnigymError(f"{self.name} does not serve {missing}; it has: {', '.join(sorted(there)) or 'none'}")
        return True

    def environment_url(self, name: str) -> str:
        """With the token in it, which a Client sends in a header and shows nowhere."""
        parts = urlsplit(self.address())
        return (
            urlunsplit(parts._replace(netloc=f"omnigym:{quote(self.wanted.token, safe='')}@{parts.netloc}"))
            + f"/{name}"
        )

    def log_tail(self) -> str:
        return "its log is with whoever runs it"

    def stop(self, seconds: float = 10.0) -> None:
        if self._folder is not None:
            self._folder.cleanup()


def environment_server(wanted: Environments) -> UrlServer:
    """The server at `wanted.url`."""
    return UrlServer(wanted)
