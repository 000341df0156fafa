"""An OpenAI-compatible endpoint: one request for a chat completion, tried again for as long as that makes sense."""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any, NoReturn

from gora.errors import InputError
from gora.evaluation.mtbench.wire import Garbled, Reply, fault, read_body, reply, retry_after
from gora.evaluation.task import JudgeSettings, Message

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0
LONGEST_ASKED = 300.0
_USUAL_KEY = JudgeSettings.api_key_env
_ADDRESS = re.compile(r"https?://(?:\[[0-9a-fA-F:.]+\]|[\w.-]+)(?::(\d{1,5}))?(?:/[^\s?#]*)?", re.ASCII)
_MAY_PASS = (408, 425, 429)
_LONGEST_TIMEOUT = 86400
# Servers at home take any key, such as `x`; striking that out would make nonsense of every text.
_SHORTEST_SECRET = 8


class Unavailable(Exception):
    """The endpoint did not answer, or asked to come back later, on every try."""


class Stopped(Exception):
    """Nobody waits for the answer any more."""


class Refused(Exception):
    """The endpoint takes requests, but not this one."""


class Endpoint:
    """Where a judge is asked. Its methods may be called from several threads.

    The key is read from the environment, goes into one header, and is struck out of whatever the endpoint sends back.

    Args:
        settings: where it is and how patient to be.

    Raises:
        InputError: the address is none, the key cannot be sent, or a number makes no sense.
    """

    def __init__(self, settings: JudgeSettings) -> None:
        _check(settings)
        self._settings = settings
        self._key = _key(settings.api_key_env)
        self._url = f"{settings.base_url.rstrip('/')}/chat/completions"
        # Redirects are not followed: they would carry the key to a place that nobody named.
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Begin no further try, and end every pause."""
        self._stopped.set()

    def chat(self, messages: Sequence[Message], *, temperature: float, max_tokens: int) -> Reply:
        """Ask for the next message of a conversation.

        Raises:
            Unavailable: every try failed for a reason that may pass.
            Refused: this request is not accepted.
            Garbled: the answer is no chat completion.
            Stopped: `stop` was called.
            InputError: no request can succeed: the key, the model or the address is wrong, or the quota is used up.
        """
        body = {"model": self._settings.model, "messages": list(messages), "temperature": temperature}
        content = json.dumps({**body, "max_tokens": max_tokens}).encode()
        for tried in range(self._settings.retries + 1):
            if self._stopped.is_set():
                raise Stopped
            try:
                return reply(self._shown(self._post(content)))
            except _Passing as failure:
                reason, wait = str(failure), failure.pause(tried)
            if tried == self._settings.retries or wait is None:
                break
            self.pause(wait)
        raise Unavailable(f"{reason}; tried {tried + 1} {'times' if tried else 'time'}")

    def pause(self, seconds: float) -> None:
        """Wait, unless the endpoint is stopped."""
        self._stopped.wait(seconds)

    def _post(self, content: bytes) -> bytes:
        deadline = time.monotonic() + self._settings.timeout
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "gora"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self._url, content, headers, method="POST")
        try:
            with self._opener.open(request, timeout=self._settings.timeout) as response:
                return read_body(response, deadline)
        except urllib.error.HTTPError as error:
            with error:
                self._explain(error, deadline)
        except (OSError, http.client.HTTPException) as error:
            self._not_reached(error)

    def _explain(self, error: urllib.error.HTTPError, deadline: float) -> NoReturn:
        """What a status other than success means for this request and for all others."""
        try:
            said = self._shown(read_body(error, deadline))
        except (OSError, http.client.HTTPException, Garbled):
            said = ""
        kind, parameter, message = fault(said)
        self._refuse_for_good(error.code, f"{message} " if message else "", kind, parameter)
        summary = f"status {error.code}{f': {message}' if message else ''}"
        if error.code in _MAY_PASS or error.code >= 500:
            raise _Passing(summary, retry_after(error.headers.get("Retry-After")))
        raise Refused(summary)

    def _refuse_for_good(self, status: int, said: str, kind: str, parameter: str) -> None:
        where, model = f"{self._url} answers with status {status}: {said}", self._settings.model
        variable = self._settings.api_key_env
        if status == 401:
            key = f"The key in the environment variable {variable} is not accepted." if self._key else ""
            raise InputError(f"{where}{key or f'A key is needed: set the environment variable {variable}.'}")
        if status == 403:
            raise InputError(f"{where}Is the key in {variable} allowed to use the model {model!r}?")
        if status == 404:
            raise InputError(f"{where}Check the address, which often ends in /v1, and the model's name, {model!r}.")
        if 300 <= status < 400:
            raise InputError(f"{where}It redirects to another address. Give that one.")
        if kind == "insufficient_quota":
            raise InputError(f"{where}The account's quota is used up; waiting does not help.")
        if status == 400 and parameter in ("temperature", "max_tokens"):
            raise InputError(f"{where}The model {model!r} cannot be a judge here: it takes no {parameter}.")

    def _not_reached(self, error: Exception) -> NoReturn:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise InputError(f"{self._url}: the certificate cannot be verified: {reason.verify_message}.") from error
        if isinstance(reason, TimeoutError):
            raise _Passing(f"no complete answer within {self._settings.timeout:g} s") from error
        raise _Passing(f"the connection failed: {str(reason) or type(reason).__name__}") from error

    def _shown(self, content: bytes) -> str:
        text = content.decode("utf-8", errors="replace")
        return text.replace(self._key, "***") if len(self._key) >= _SHORTEST_SECRET else text


class _Passing(Exception):
    """A try failed for a reason that may pass, and perhaps the endpoint said when."""

    def __init__(self, reason: str, asked: float | None = None) -> None:
        super().__init__(reason if asked is None else f"{reason}; it asks to wait for {asked:.0f} s")
        self._asked = asked

    def pause(self, tried: int) -> float | None:
        """Seconds to wait: what the endpoint asks for, else twice as long each time; None is too long.

        Chance keeps threads that failed together from trying together.
        """
        if self._asked is None:
            return min(LONGEST_PAUSE, FIRST_PAUSE * 2**tried) * random.uniform(0.5, 1)
        return self._asked + random.uniform(0, FIRST_PAUSE) if self._asked <= LONGEST_ASKED else None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any, **named: Any) -> None:
        return None


def _check(settings: JudgeSettings) -> None:
    if "@" in settings.base_url:
        raise InputError("The judge's address holds a name or password. Put the key into an environment variable.")
    address = _ADDRESS.fullmatch(settings.base_url)
    if not address or int(address[1] or 0) > 65535:
        raise InputError(f"{settings.base_url!r} is no address of an endpoint, such as https://api.openai.com/v1.")
    if not settings.model:
        raise InputError("The judge's model has no name.")
    if settings.parallel < 1 or settings.retries < 0 or not 0 < settings.timeout <= _LONGEST_TIMEOUT:
        raise InputError("The judge needs one request at a time or more, 0 retries or more, and up to a day to answer.")


def _key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not key and variable != _USUAL_KEY:
        raise InputError(f"The environment variable {variable}, which is to hold the judge's key, is not set.")
    # The library that sends it would show it in its error message.
    if not re.fullmatch(r"[!-~]*", key):
        raise InputError(f"The environment variable {variable} holds characters that no key has.")
    return key
