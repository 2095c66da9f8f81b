"""The HTTP client against a real server on the loopback interface that misbehaves on demand."""

import json
import logging
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mismatch_probe.engines.server.client import ServerClient, ServerLimits, check_url
from mismatch_probe.errors import CaptureError, ConfigError, EngineUnavailableError

KEY = "sk-planted-key-4711"
QUICK = ServerLimits(timeout_s=5, retries=2, pause_s=0.01, concurrency=3)


class Wayward:
    """A server that answers what it is told, one entry a request, the last for all further ones."""

    def __init__(self):
        self.answers, self.seen, self.busy, self.most_busy = [(200, {}, "{}")], [], 0, 0
        self.slow = 0.0
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                with lock:
                    outer.busy += 1
                    outer.most_busy = max(outer.most_busy, outer.busy)
                    body = self.rfile.read(int(self.headers["content-length"]))
                    outer.seen.append((self.path, dict(self.headers), json.loads(body)))
                    status, headers, text = outer.answers[min(len(outer.seen), len(outer.answers)) - 1]
                time.sleep(outer.slow)
                with lock:
                    outer.busy -= 1
                if status == 0:
                    self.close_connection = True
                    return
                text = text.replace("$BODY", body.decode())
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def wayward():
    server = Wayward()
    yield server
    server.http.shutdown()
    server.http.server_close()


def test_the_key_goes_out_as_a_bearer_token(wayward):
    ServerClient(wayward.url, key=KEY, limits=QUICK).post("/v1/completions", {"prompt": [1, 2]})
    path, headers, body = wayward.seen[0]
    assert (path, body) == ("/v1/completions", {"prompt": [1, 2]})
    assert headers["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("status", [0, 429, 502, 503, 504])
def test_what_may_pass_is_tried_again(wayward, status):
    wayward.answers = [(status, {}, ""), (status, {}, ""), (200, {}, '{"a": 1}')]
    assert ServerClient(wayward.url, limits=QUICK).post("/x", {}) == {"a": 1}
    assert len(wayward.seen) == 3


def test_it_gives_up_and_says_so(wayward):
    wayward.answers = [(503, {}, "")]
    with pytest.raises(EngineUnavailableError, match="after 3 attempts: status 503"):
        ServerClient(wayward.url, limits=QUICK).post("/x", {})
    assert len(wayward.seen) == 3
    with pytest.raises(EngineUnavailableError, match="after 1 attempts"):
        ServerClient(wayward.url, limits=QUICK).post("/x", {}, retry=False)


def test_retry_after_is_kept_to(wayward):
    wayward.answers = [(429, {"retry-after": "0.4"}, ""), (200, {}, "{}")]
    begin = time.monotonic()
    ServerClient(wayward.url, limits=QUICK).post("/x", {})
    assert time.monotonic() - begin >= 0.4


def test_a_server_that_is_gone_is_said_to_be_gone(wayward):
    wayward.answers = [(0, {}, "")]
    client = ServerClient(wayward.url, limits=QUICK, lost=lambda: "the server ended with status 7")
    with pytest.raises(EngineUnavailableError, match="ended with status 7"):
        client.post("/x", {})
    assert len(wayward.seen) == 1


def test_no_answer_in_time_is_an_error(wayward):
    wayward.slow = 1.0
    with pytest.raises(EngineUnavailableError, match="ReadTimeout"):
        ServerClient(wayward.url, limits=ServerLimits(timeout_s=0.1, retries=0)).post("/x", {})


def test_redirects_are_not_followed(wayward):
    other = Wayward()
    wayward.answers = [(307, {"location": other.url + "/x"}, "")]
    with pytest.raises(EngineUnavailableError, match="redirects are not followed"):
        ServerClient(wayward.url, key=KEY, limits=QUICK).post("/x", {})
    assert other.seen == []
    other.http.shutdown()
    other.http.server_close()


@pytest.mark.parametrize(
    ("status", "kind"), [(400, ConfigError), (401, ConfigError), (404, ConfigError), (500, CaptureError)]
)
def test_a_refusal_is_not_tried_again_and_never_shows_the_key(wayward, status, kind, caplog):
    wayward.answers = [(status, {}, f"you sent {KEY} with $BODY")]
    with caplog.at_level(logging.DEBUG), pytest.raises(kind) as caught:
        ServerClient(wayward.url, key=KEY, limits=QUICK).post("/x", {})
    assert len(wayward.seen) == 1
    assert KEY not in str(caught.value) + caplog.text


def test_an_answer_that_is_not_json_is_an_error(wayward):
    wayward.answers = [(200, {}, "<html>")]
    with pytest.raises(CaptureError, match="JSON"):
        ServerClient(wayward.url, limits=QUICK).post("/x", {})


def test_many_requests_are_bounded_and_answered_in_order(wayward):
    wayward.answers, wayward.slow = [(200, {}, "$BODY")], 0.02
    finished = []
    answers = ServerClient(wayward.url, limits=QUICK).post_all(
        "/x", [{"n": n} for n in range(12)], finished.append
    )
    assert answers == [{"n": n} for n in range(12)]
    assert sorted(finished) == list(range(12))
    assert 1 < wayward.most_busy <= QUICK.concurrency


def test_the_first_failure_ends_many_requests(wayward):
    wayward.answers = [(400, {}, "no")]
    with pytest.raises(ConfigError):
        ServerClient(wayward.url, limits=QUICK).post_all("/x", [{}] * 50, lambda _: None)
    assert len(wayward.seen) < 50


@pytest.mark.parametrize(
    "url", ["ftp://x", "127.0.0.1:80", "http://me:secret@x", "http://x?key=secret", "http://x#y"]
)
def test_an_address_that_is_none_or_carries_a_secret_is_refused(url):
    with pytest.raises(ConfigError) as caught:
        check_url(url)
    assert "secret" not in str(caught.value)


def test_the_api_suffix_is_optional():
    assert check_url("http://host:8000/v1/") == check_url("http://host:8000") == "http://host:8000"
