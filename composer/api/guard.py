"""Who may call: the app's user, and no page of another site."""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send


class Guard:
    """Lets a request for some paths pass if it may; all others pass.

    A browser sends the requests of any page to this machine, and names the page's site in `Origin`;
    programs do not. So a request of another site's page is refused.

    paths: any of these is part of a path that is guarded.
    auth: the name and password that HTTP basic must give; None asks for none.
    """

    def __init__(
        self, app: ASGIApp, paths: Sequence[str], auth: tuple[str, str] | None = None
    ) -> None:
        self._app, self._paths, self._auth = app, tuple(paths), auth

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        app = self._app
        if scope["type"] == "http" and any(path in scope["path"] for path in self._paths):
            headers = Headers(scope=scope)
            origin = headers.get("origin")
            if origin is not None and urlsplit(origin).netloc != headers.get("host"):
                app = _refusal(403, f"Pages of {origin} may not call Composer.")
            elif self._auth is not None and not self._knows(headers.get("authorization", "")):
                app = _refusal(401, "Give the name and password of --auth by HTTP basic.")
        await app(scope, receive, send)

    def _knows(self, authorization: str) -> bool:
        assert self._auth is not None
        scheme, _, encoded = authorization.partition(" ")
        try:
            given = base64.b64decode(encoded.strip(), validate=True)
        except (binascii.Error, ValueError):
            return False
        name, _, password = given.partition(b":")
        known = [word.encode() for word in self._auth]
        # both are compared, so that the time taken says nothing of either
        same = [secrets.compare_digest(*pair) for pair in zip((name, password), known, strict=True)]
        return scheme.lower() == "basic" and all(same)


def _refusal(status: int, detail: str) -> JSONResponse:
    asking = {"WWW-Authenticate": 'Basic realm="Composer"'} if status == 401 else None
    return JSONResponse(refusal("Refused", detail), status, asking)


def refusal(error: str, detail: str) -> dict[str, str]:
    """The body of an answer with an error, as A1111 words it."""
    return {"error": error, "detail": detail, "body": "", "errors": detail}
