"""An OpenAI-compatible endpoint, asked through `huggingface_hub`: one chat completion, tried again where that helps."""

from __future__ import annotations

import json
import os
import random
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import InferenceClient, is_offline_mode
from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

from gora.errors import InputError
from gora.evaluation.task import JudgeSettings, Message

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0
LONGEST_ASKED = 300.0
_USUAL_KEY = JudgeSettings.api_key_env
# Without any key the library would send the one of the hub that is saved on this machine.
_NO_KEY = "none"
_ADDRESS = re.compile(r"https?://(?:\[[0-9a-fA-F:.]+\]|[\w.-]+)(?::(\d{1,5}))?(?:/[^\s?#]*)?", re.ASCII)
_MAY_PASS = (408, 425, 429)
_LONGEST_TIMEOUT = 86400
# Servers at home take any key, such as `x`; striking that out would make nonsense of every text.
_SHORTEST_SECRET = 8
_SHOWN = 300
_OFFLINE = (
    "HF_HUB_OFFLINE is set, and huggingface_hub then reaches no judge either. Unset it for this command; answers that "
    "were generated with it are used again."
)


class Unavailable(Exception):
    """The endpoint did not answer, or asked to come back later, on every try."""


class Stopped(Exception):
    """The answer is not needed any more."""


class Refused(Exception):
    """The endpoint accepts requests, but not this one."""


class Garbled(Exception):
    """The endpoint answered with something that is not a chat completion."""


@dataclass(frozen=True)
class Reply:
    """What the model said, and how many tokens the endpoint counted for it; 0 where it does not say."""

    text: str
    tokens: int


class Endpoint:
    """Where a judge is asked. Its methods may be called from several threads.

    The key is read from the environment, goes into one header, and is struck out of whatever the endpoint sends back.

    Args:
        settings: where it is and how patient to be.

    Raises:
        InputError: the address is not one, the key cannot be sent, a number makes no sense, or the hub is offline.
    """

    def __init__(self, settings: JudgeSettings) -> None:
        _check(settings)
        self._settings = settings
        self._key = _key(settings.api_key_env)
        self._url = f"{settings.base_url.rstrip('/')}/chat/completions"
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Begin no further try, and end every pause."""
        self._stopped.set()

    def chat(self, messages: Sequence[Message], *, temperature: float, max_tokens: int) -> Reply:
        """Ask for the next message of a conversation.

        Raises:
            Unavailable: every try failed for a reason that may pass.
            Refused: this request is not accepted.
            Garbled: the answer is not a chat completion.
            Stopped: `stop` was called.
            InputError: no request can succeed: the key, the model or the address is wrong, or the quota is used up.
        """
        for tried in range(self._settings.retries + 1):
            if self._stopped.is_set():
                raise Stopped
            try:
                return self._ask(messages, temperature, max_tokens)
            except _Passing as failure:
                reason, wait = str(failure), failure.pause(tried)
            if tried == self._settings.retries or wait is None:
                break
            self.pause(wait)
        raise Unavailable(f"{reason}; tried {tried + 1} {'times' if tried else 'time'}")

    def pause(self, seconds: float) -> None:
        """Wait, unless the endpoint is stopped."""
        self._stopped.wait(seconds)

    def _ask(self, messages: Sequence[Message], temperature: float, max_tokens: int) -> Reply:
        settings = self._settings
        try:
            # A client of its own: versions of the library before 2 close connections with the client only.
            with InferenceClient(
                base_url=self._url,
                api_key=self._key or _NO_KEY,
                timeout=settings.timeout,
                headers={"user-agent": "gora"},
            ) as client:
                said = client.chat_completion(
                    [dict(message) for message in messages],
                    model=settings.model,
                    temperature=temperature,
                    max_tokens=max_tokens,
                )
        except OfflineModeIsEnabled as error:
            raise InputError(_OFFLINE) from error
        except (HTTPError, ValueError, AttributeError, TypeError, RecursionError) as error:
            raise self._meaning(error) from error
        try:
            text = said.choices[0].message.content
        except (AttributeError, IndexError, TypeError) as error:
            raise Garbled("not a chat completion: there is no choices[0].message.content") from error
        if not isinstance(text, str):
            raise Garbled("not a chat completion: choices[0].message.content is not a text")
        tokens = getattr(said.usage, "total_tokens", 0)
        return Reply(self._struck_out(text), tokens if isinstance(tokens, int) else 0)

    def _meaning(self, error: Exception) -> Exception:
        """What an error of the library means for this request and for all others."""
        if (response := _response(error)) is not None:
            return self._refusal(response)
        if "Timeout" in type(error).__name__:
            return _Passing(f"no answer within {self._settings.timeout:g} s")
        if isinstance(error, HTTPError):
            reason = self._struck_out(str(error)) or type(error).__name__
            if "CERTIFICATE_VERIFY_FAILED" in reason:
                return InputError(f"{self._url}: the certificate cannot be verified: {reason}.")
            return _Passing(f"the connection failed: {reason}")
        came = f": {self._struck_out(_short(error.doc))!r}" if isinstance(error, json.JSONDecodeError) else ""
        return Garbled(f"not a chat completion{came}")

    def _refusal(self, response: Any) -> Exception:
        """What a status other than success means."""
        kind, parameter, message = _fault(response)
        said = self._struck_out(message)
        status = response.status_code
        if never := self._never(status, kind, parameter):
            url = self._url + (f", which leads to {response.url}," if response.history else "")
            return InputError(f"{url} answers with status {status}: {f'{said} ' if said else ''}{never}")
        summary = f"status {status}{f': {said}' if said else ''}"
        if status in _MAY_PASS or status >= 500:
            return _Passing(summary, response.headers.get("Retry-After"))
        return Refused(summary)

    def _never(self, status: int, kind: str, parameter: str) -> str | None:
        """What to do about a status that no other request changes; None where another one may."""
        model, variable = self._settings.model, self._settings.api_key_env
        if status == 401 and not self._key:
            return f"A key is needed: set the environment variable {variable}."
        if status == 401:
            return f"The key in the environment variable {variable} is not accepted."
        if status == 403:
            return f"Is the key in {variable} allowed to use the model {model!r}?"
        if status in (404, 405):
            return f"Check the address, which often ends in /v1, and the model's name, {model!r}."
        if kind == "insufficient_quota":
            return "The account's quota is used up; waiting does not help."
        if status == 400 and parameter in ("temperature", "max_tokens"):
            return f"The model {model!r} cannot be a judge here: it does not accept {parameter}."
        return None

    def _struck_out(self, text: str) -> str:
        return text.replace(self._key, "***") if len(self._key) >= _SHORTEST_SECRET else text


class _Passing(Exception):
    """A try failed for a reason that may pass, and perhaps the endpoint said when: in seconds, as a header has it."""

    def __init__(self, reason: str, asked: str | None = None) -> None:
        self._asked = int(asked) if asked is not None and re.fullmatch(r"\d{1,9}", asked.strip()) else None
        super().__init__(reason if self._asked is None else f"{reason}; it asks to wait for {self._asked} s")

    def pause(self, tried: int) -> float | None:
        """Seconds to wait: what the endpoint asks for, else twice as long each time; None is too long.

        Chance keeps threads that failed together from trying together.
        """
        if self._asked is None:
            return min(LONGEST_PAUSE, FIRST_PAUSE * 2**tried) * random.uniform(0.5, 1)
        return self._asked + random.uniform(0, FIRST_PAUSE) if self._asked <= LONGEST_ASKED else None


def _response(error: BaseException | None) -> Any:
    """The response that an error comes from; the library fails on some bodies while it reports the status."""
    while error is not None:
        if (response := getattr(error, "response", None)) is not None:
            return response
        error = error.__context__
    return None


def _fault(response: Any) -> tuple[str, str, str]:
    """Code, parameter and message of an error in OpenAI's form; the text itself where it has another."""
    try:
        text = response.text
    except RuntimeError:
        # The connection broke off before the body was there.
        return "", "", ""
    try:
        error = json.loads(text)["error"]
        return str(error.get("code")), str(error.get("param")), _short(str(error.get("message") or ""))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return "", "", _short(text)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _check(settings: JudgeSettings) -> None:
    if "@" in settings.base_url:
        raise InputError("The judge's address holds a name or password. Put the key into an environment variable.")
    address = _ADDRESS.fullmatch(settings.base_url)
    if not address or int(address[1] or 0) > 65535:
        raise InputError(f"{settings.base_url!r} is not an address of an endpoint, such as https://api.openai.com/v1.")
    if not settings.model:
        raise InputError("The judge's model has no name.")
    if settings.parallel < 1:
        raise InputError(f"The judge needs one request at a time or more, not {settings.parallel}.")
    if settings.retries < 0:
        raise InputError(f"The judge needs 0 retries or more, not {settings.retries}.")
    if not 0 < settings.timeout <= _LONGEST_TIMEOUT:
        raise InputError(f"The judge needs between 0 and {_LONGEST_TIMEOUT} s to answer, not {settings.timeout}.")
    if is_offline_mode():
        raise InputError(_OFFLINE)


def _key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not key and variable != _USUAL_KEY:
        raise InputError(f"The environment variable {variable}, which is to hold the judge's key, is not set.")
    # The library that sends it would show it in its error message.
    if not re.fullmatch(r"[!-~]*", key):
        raise InputError(f"The environment variable {variable} holds characters that no key has.")
    return key
