"""Middleware of the vLLM server that the probe starts: every path needs the key.

vLLM's own check covers the API paths only. The probe also opens development paths, through which anybody on the machine
could otherwise reach the worker.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Awaitable, Callable
from typing import Any

_Channel = Callable[..., Awaitable[Any]]


class KeyGuard:
    """ASGI middleware: answers 401 to a request that does not carry the server's key, `/health` excepted.

    Args:
        app: The application behind it.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app
        self._expected = f"Bearer {os.environ['VLLM_API_KEY']}".encode()

    async def __call__(self, scope: dict[str, Any], receive: _Channel, send: _Channel) -> None:
        """Handles one request."""
        if scope["type"] == "http" and scope["path"] != "/health":
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self._expected):
                await send({"type": "http.response.start", "status": 401, "headers": []})
                await send({"type": "http.response.body", "body": b"{}"})
                return
        await self._app(scope, receive, send)
