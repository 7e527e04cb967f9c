"""Tokens are used as long as they live, and renewed before."""

from __future__ import annotations

import threading
import time

import pytest

from csi_driver.model.errors import CredentialsRejected, TransientStoreError
from csi_driver.objects.bearer_tokens import RENEWED_EARLY_S, BearerToken, BearerTokens


class Service:
    """Gives out numbered tokens."""

    def __init__(self, life_s: float) -> None:
        self.life_s, self.failure = life_s, False
        self.requests = 0

    def request(self) -> BearerToken:
        self.requests += 1
        if self.failure:
            raise TransientStoreError("the service fails")
        return BearerToken(f"token-{self.requests}", time.time() + self.life_s)


def test_a_token_is_requested_once_while_it_is_far_from_its_end() -> None:
    service = Service(RENEWED_EARLY_S + 60)
    tokens = BearerTokens(service.request)
    assert tokens.valid() is None
    assert [tokens.get() for _ in range(3)] == ["token-1"] * 3
    assert tokens.valid() == "token-1"
    assert service.requests == 1


def test_a_token_near_its_end_is_renewed() -> None:
    service = Service(RENEWED_EARLY_S - 60)
    tokens = BearerTokens(service.request)
    assert tokens.get() == "token-1"
    assert tokens.valid() is None
    service.life_s = RENEWED_EARLY_S + 60
    tokens._next_attempt_s = 0
    assert tokens.get() == "token-2"


@pytest.mark.promise("S194")
def test_a_token_is_used_as_long_as_it_lives_while_the_service_fails() -> None:
    service = Service(RENEWED_EARLY_S - 60)
    tokens = BearerTokens(service.request)
    assert tokens.get() == "token-1"
    service.failure = True
    tokens._next_attempt_s = 0
    assert [tokens.get() for _ in range(5)] == ["token-1"] * 5
    assert service.requests == 2  # the service is not asked for each request of a reader
    service.life_s = -1
    expired = BearerTokens(service.request)
    with pytest.raises(TransientStoreError):
        expired.get()


def test_threads_that_wait_for_a_token_get_the_same_one() -> None:
    asked, answer = threading.Event(), threading.Event()

    def request() -> BearerToken:
        assert not asked.is_set(), "asked twice"
        asked.set()
        answer.wait(10)
        return BearerToken("token", time.time() + 3600)

    tokens, got = BearerTokens(request), []
    threads = [threading.Thread(target=lambda: got.append(tokens.get())) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert asked.wait(10)
    answer.set()
    for thread in threads:
        thread.join(10)
    assert got == ["token"] * 4


def test_a_refusal_is_no_reason_to_forget_a_valid_token() -> None:
    answers: list[BearerToken | None] = [BearerToken("first", time.time() + RENEWED_EARLY_S - 60), None]

    def request() -> BearerToken:
        answer = answers.pop(0)
        if answer is None:
            raise CredentialsRejected("no longer")
        return answer

    tokens = BearerTokens(request)
    assert tokens.get() == "first"
    tokens._next_attempt_s = 0
    assert tokens.get() == "first"
