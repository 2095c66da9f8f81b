"""HTTP to an inference server: bounded, patient, and silent about the key."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mismatch_probe.errors import CaptureError, ConfigError, EngineUnavailableError

if TYPE_CHECKING:
    import httpx

_RETRIED = frozenset({429, 502, 503, 504})
_LONGEST_PAUSE_S = 30.0
_SHOWN = 300


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """How a server is spoken to.

    Attributes:
        timeout_s: Longest wait for an answer to one request.
        retries: Further attempts after an answer of 429, 502, 503 or 504, a connection that fails or one that breaks.
        pause_s: Before the first further attempt; twice as long before each one after, at most 30 s. A longer
            `Retry-After` of the server is kept to, at most 30 s too.
        concurrency: Requests on the way at once.
    """

    timeout_s: float = 600.0
    retries: int = 4
    pause_s: float = 0.5
    concurrency: int = 32


class ServerClient:
    """JSON requests to one server.

    Redirects are refused rather than followed, and neither proxies nor credentials are taken from the surroundings: the
    prompts and the key go to the address that was given and nowhere else.

    Args:
        url: Base address, http or https, such as "http://127.0.0.1:8000".
        key: API key, sent as a bearer token; None sends none. It appears in no message.
        limits: Patience.
        lost: Called when the server cannot be reached; what it returns, such as how the process ended, is the message
            and there is no further attempt. None as result goes on trying.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        limits: ServerLimits | None = None,
        lost: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.url = check_url(url)
        self._key = key
        self._limits = limits or ServerLimits()
        self._lost = lost
        httpx = _import_httpx()
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(self._limits.timeout_s, connect=10.0),
            limits=httpx.Limits(max_connections=self._limits.concurrency),
            follow_redirects=False,
            trust_env=False,
        )

    def get(self, path: str) -> Any:
        """What the server answers to GET."""
        return self._ask("GET", path, None, self._limits.retries)

    def post(self, path: str, body: Mapping[str, Any], *, retry: bool = True) -> Any:
        """What the server answers to POST.

        Args:
            path: Below the base address.
            body: Sent as JSON.
            retry: False for a request that must not be made twice.

        Raises:
            EngineUnavailableError: The server is not there, does not answer in time, or sends elsewhere.
            ConfigError: It refuses the request or the key.
            CaptureError: It answers with something that is not JSON, or fails.
        """
        return self._ask("POST", path, body, self._limits.retries if retry else 0)

    def post_all(
        self, path: str, bodies: Sequence[Mapping[str, Any]], on_answer: Callable[[int], None]
    ) -> list[Any]:
        """Many requests, at most `concurrency` at once; the first failure ends all.

        Args:
            path: Below the base address.
            bodies: One a request.
            on_answer: Called with the index of each request as it is answered.

        Returns:
            Answers in the order of `bodies`.
        """
        answers: list[Any] = [None] * len(bodies)
        with ThreadPoolExecutor(self._limits.concurrency) as pool:
            waiting = {pool.submit(self.post, path, body): index for index, body in enumerate(bodies)}
            try:
                for future in as_completed(waiting):
                    answers[waiting[future]] = future.result()
                    on_answer(waiting[future])
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return answers

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None, retries: int) -> Any:
        httpx = _import_httpx()
        pause = self._limits.pause_s
        for attempt in range(retries + 1):
            wait = pause * 2**attempt
            try:
                response = self._http.request(method, path, json=body)
            except (
                httpx.ConnectError,
                httpx.RemoteProtocolError,
                httpx.ReadError,
                httpx.TimeoutException,
            ) as error:
                problem = f"{type(error).__name__} {error}".strip()
                ended = self._lost()
                if ended is not None:
                    raise EngineUnavailableError(ended) from error
            else:
                if response.status_code not in _RETRIED:
                    return self._read(response, path)
                problem = f"status {response.status_code}"
                wait = max(wait, _retry_after(response))
            if attempt < retries:
                time.sleep(min(wait, _LONGEST_PAUSE_S))
        raise EngineUnavailableError(
            f"no answer from {self.url}{path} after {retries + 1} attempts: {self._clean(problem)}",
            hint="is the server up? rollout.options.timeout_s and rollout.options.retries say how long to wait",
        )

    def _read(self, response: httpx.Response, path: str) -> Any:
        status = response.status_code
        if 300 <= status < 400:
            raise EngineUnavailableError(
                f"{self.url}{path} redirects (status {status}); redirects are not followed",
                hint="give the final address as rollout.options.url",
            )
        if status in (401, 403):
            raise ConfigError(
                f"{self.url}{path} refuses the API key (status {status})",
                hint="put the key into the environment variable that rollout.options.api_key_env names",
            )
        if 400 <= status < 500:
            raise ConfigError(
                f"{self.url}{path} refuses the request (status {status}): {self._clean(response.text)}",
                hint="check model, max_tokens and rollout.options.*",
            )
        if status >= 500:
            raise CaptureError(f"{self.url}{path} failed (status {status}): {self._clean(response.text)}")
        if not response.content:
            return None
        try:
            return response.json()
        except ValueError as error:
            raise CaptureError(
                f"{self.url}{path} did not answer in JSON: {self._clean(response.text)}"
            ) from error

    def _clean(self, text: str) -> str:
        if self._key:
            text = text.replace(self._key, "<redacted>")
        return " ".join(text.split())[:_SHOWN]


def check_url(url: str) -> str:
    """The base address without a slash at its end.

    Raises:
        ConfigError: It is not http(s), or carries credentials, a query or a fragment.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            "rollout.options.url must be http://HOST:PORT or https://HOST", hint="check the address"
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError(
            "rollout.options.url must not carry credentials, a query or a fragment",
            hint="put the key into the environment variable that rollout.options.api_key_env names",
        )
    return url.rstrip("/").removesuffix("/v1")


def key_from_environment(name: str) -> str | None:
    """The API key in the environment variable `name`; None where it is not set or empty."""
    return os.environ.get(name) or None


def _retry_after(response: httpx.Response) -> float:
    try:
        return float(response.headers.get("retry-after", "0"))
    except ValueError:
        return 0.0  # a date; the doubled pauses do


def _import_httpx() -> Any:
    try:
        import httpx
    except ModuleNotFoundError as error:
        raise EngineUnavailableError(
            "httpx is not installed", hint="pip install 'mismatch-probe[server]'"
        ) from error
    return httpx
