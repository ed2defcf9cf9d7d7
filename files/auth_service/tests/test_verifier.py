"""What is known of tokens: judged as Authlib judges them, asked about together."""

import asyncio
import json
import random
import string
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any

import pytest
from conftest import ECHO, ISSUER, keyring
from joserfc.jwk import ECKey
from joserfc.jws import JWSRegistry
from test_check import claims, forge
from test_direct import Revocations

from gatehouse_auth.audit import Log
from gatehouse_auth.identity.base import Identity
from gatehouse_auth.keyring import Keyring
from gatehouse_auth.oauth import tokens
from gatehouse_auth.oauth.tokens import AccessToken, InvalidAccessToken, TokenVerifier
from gatehouse_auth.store import StoreUnavailable
from gatehouse_auth.verifier import Finding, Findings

RING = keyring("current", "next")
KEYS = [ECKey.import_key({**entry["jwk"], "kid": entry["kid"]}) for entry in json.loads(RING)["keys"]]


def verdict(verifier: TokenVerifier, token: str) -> AccessToken | None:
    try:
        return verifier.verify(token)
    except InvalidAccessToken:
        return None


def segment(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(header: bytes, payload: bytes, key: ECKey = KEYS[0]) -> str:
    """A token of these very bytes, with a good signature."""
    told = f"{segment(header)}.{segment(payload)}"
    return f"{told}.{segment(JWSRegistry.algorithms['ES256'].sign(told.encode(), key))}"


ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, 1e308, 1.5, float("nan"), float("inf"),
    "", " ", "x", ISSUER, ECHO, "soon", [], ["x"], [ECHO], [ISSUER], ["x", ECHO], [1], [None], {}, {"x": 1},
    [[]], "\x00", "\ud800", "é", "a" * 500,
]  # fmt: skip
NAMES = [*claims(), "nbf", "auth_time", "acr", "amr", "roles", "entitlements", "value", "claims", "", "é"]


def corpus(draw: random.Random) -> list[str]:
    head = b'{"alg":"ES256","typ":"at+jwt","kid":"key-0"}'
    good = forge(KEYS[0])
    made = [good, forge(KEYS[1], {"kid": "key-1"}), forge(KEYS[0], {"kid": "key-1"}), forge(KEYS[1])]
    # Claims, one and several at a time.
    for name in NAMES:
        made += [signed(head, json.dumps({**claims(), name: odd}).encode()) for odd in ODD]
        made.append(signed(head, json.dumps({n: v for n, v in claims().items() if n != name}).encode()))
    for _ in range(300):
        changed = {**claims(), **{draw.choice(NAMES): draw.choice(ODD) for _ in range(3)}}
        made.append(signed(head, json.dumps(changed).encode()))
    now = claims()["iat"]
    made += [forge(KEYS[0], exp=now + off) for off in (-32, -29, 0, 1)]
    made += [forge(KEYS[0], iat=now + off) for off in (-100, 0, 28, 33)]
    made += [forge(KEYS[0], nbf=now + off) for off in (-100, 0, 28, 33)]
    # Payloads that are something else.
    made += [
        signed(head, payload)
        for payload in (
            b"", b"null", b"[]", b"1", b'"x"', b"{", b"\xff", b"[" * 100_000, b"{}",
            b" " + json.dumps(claims()).encode(),
            json.dumps(claims()).encode() + b"x", json.dumps(claims()).encode("utf-16"),
            b'{"sub":"eve",' + json.dumps(claims()).encode()[1:],
            json.dumps(claims()).encode()[:-1] + b',"sub":"eve"}', b'{"exp":' + b"9" * 5000 + b"}",
        )
    ]  # fmt: skip
    # Headers, with a good signature.
    for header in (
        b'{"typ":"at+jwt","kid":"key-0","alg":"ES256"}', b'{"alg":"ES256","typ":"AT+JWT","kid":"key-0"}',
        b'{"alg":"ES256","typ":"JWT","kid":"key-0"}', b'{"alg":"ES256","kid":"key-0"}',
        b'{"alg":"none","typ":"at+jwt","kid":"key-0"}', b'{"alg":"ES384","typ":"at+jwt","kid":"key-0"}',
        b'{"alg":"ES256","typ":"at+jwt","kid":["key-0"]}', b'{"alg":"ES256","typ":"at+jwt"}',
        b'{"alg":"ES256","typ":"at+jwt","kid":"key-0","b64":false,"crit":["b64"]}',
        b'{"alg":"ES256","typ":"at+jwt","kid":"key-0","crit":["x"],"x":1}',
        b'{"alg":"ES256","typ":"at+jwt","kid":"key-0","jwk":{}}',
        b'{"alg":"HS256","alg":"ES256","typ":"at+jwt","kid":"key-0"}',
        b"[]", b"", b"null", b"{",
    ):  # fmt: skip
        made.append(signed(header, json.dumps(claims()).encode()))
        made.append(signed(header, json.dumps(claims()).encode()))
    # RFC 7797: the payload as it is. Under a header that turns this on, nothing else means the same.
    header = b'{"alg":"ES256","typ":"at+jwt","kid":"key-0","b64":false,"crit":["b64"]}'
    for _ in range(2):
        told = f"{segment(header)}.{json.dumps(claims()).replace('.', chr(92) + 'u002e')}"
        made.append(f"{told}.{segment(JWSRegistry.algorithms['ES256'].sign(told.encode(), KEYS[0]))}")
    # Texts that have been tampered with.
    first, second, third = good.split(".")
    raw = urlsafe_b64decode(third + "==")
    zero = bytes(32)
    made += [f"{first}.{second}.{segment(other)}" for other in (
        b"", raw[:63], raw + b"\0", zero + zero, zero + raw[32:], raw[:32] + zero,
        b"\xff" * 64, raw[32:] + raw[:32],
    )]  # fmt: skip
    made += [
        "", ".", "..", "...", first, f"{first}.", f"{first}..", f"{first}.{second}",
        f"{first}.{second}.", f".{second}.{third}",
        f"{good}.", f".{good}", f"{good}.{third}", f"{first}.{second}.{second}.{third}",
        f"{good}=", f"{good}\n", f" {good}",
        f"{first}=.{second}.{third}", f"{first}.{second}=.{third}", f"{first}.{second}.{third}==",
        good + "é", "é" + good, f"{first}.{second}é.{third}", good + "A" * 7000,
        good.replace("-", "+"), good.replace("_", "/"),
    ]  # fmt: skip
    for _ in range(1500):
        text = list(good)
        at = draw.randrange(len(text))
        text[at] = draw.choice(string.ascii_letters + string.digits + "-_.=+/ \né")
        if draw.random() < 0.2:
            del text[draw.randrange(len(text))]
        made.append("".join(text))
    return made


# covers: jwt-access-token
def test_a_token_is_judged_as_authlib_judges_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now)
    ring = Keyring.parse(RING)
    ours = TokenVerifier(ISSUER, ring, ECHO)
    with monkeypatch.context() as patch:
        patch.setattr(tokens, "HEADERS", 0)  # no header is known, ever: Authlib judges all of each token
        authlibs = TokenVerifier(ISSUER, ring, ECHO)
        made = corpus(random.Random(7))
        expected = [verdict(authlibs, token) for token in made]
        assert authlibs._headers == {}
    for token, accepted in zip(made, expected, strict=True):
        assert verdict(ours, token) == accepted, token
    assert 200 < len([accepted for accepted in expected if accepted]) < len(made) / 2
    assert {"key-0", "key-1"} == set(ours._headers.values())


def test_a_known_header_of_a_key_that_has_retired(monkeypatch: pytest.MonkeyPatch) -> None:
    now = claims()["iat"]
    entries = json.loads(RING)
    entries["keys"][1].update(state="retiring", retire_after=now + 60)
    verifier = TokenVerifier(ISSUER, Keyring.parse(json.dumps(entries)), ECHO)
    token = forge(KEYS[1], {"kid": "key-1"})
    assert verdict(verifier, token) == verdict(verifier, token) is not None
    monkeypatch.setattr("gatehouse_auth.keyring.time.time", lambda: now + 61.0)
    assert verdict(verifier, token) is None


def test_headers_are_not_kept_without_end() -> None:
    verifier = TokenVerifier(ISSUER, Keyring.parse(RING), ECHO)
    for spaces in range(40):
        header = b'{"alg":"ES256","typ":"at+jwt",' + b" " * spaces + b'"kid":"key-0"}'
        assert verdict(verifier, signed(header, json.dumps(claims()).encode())) is not None
    assert len(verifier._headers) == tokens.HEADERS


def found(number: int) -> tuple[AccessToken, str]:
    return AccessToken(
        Identity("local", "ana"), "c", "mcp", f"j{number}", f"f{number}", 2e9
    ), f"answer {number}"


async def ask(findings: Findings[str], *numbers: int) -> list[Finding[str] | BaseException | None]:
    return await asyncio.gather(
        *(
            findings.find("echo", b"token %d" % number, lambda number=number: found(number))  # type: ignore[misc]
            for number in numbers
        ),
        return_exceptions=True,
    )


def made(store: Revocations) -> Findings[str]:
    findings: Findings[str] = Findings(store, None, Log(), 300)  # type: ignore[arg-type]
    findings.stream.synced = True
    return findings


def test_tokens_that_come_together_are_asked_about_together() -> None:
    async def main() -> None:
        store = Revocations(seconds=0.01)
        findings = made(store)
        first = asyncio.create_task(ask(findings, 0))
        await asyncio.sleep(0.005)
        answers = await ask(findings, *range(1, 50))
        assert len(store.asked) == 2
        assert [one.answer for one in answers if isinstance(one, Finding)] == [
            f"answer {n}" for n in range(1, 50)
        ]
        assert set(store.asked[1]) == {name for n in range(1, 50) for name in (f"j{n}", f"f{n}", "c")}
        await first
        assert all(findings.known("echo", b"token %d" % number) for number in range(50))

    asyncio.run(main())


@pytest.mark.parametrize("name", ["j3", "f3"])
def test_one_that_is_revoked_is_no_one_elses_fault(name: str) -> None:
    async def main() -> None:
        store = Revocations({name})
        findings = made(store)
        answers = await ask(findings, *range(6))
        assert [number for number, one in enumerate(answers) if one is None] == [3]
        assert findings.known("echo", b"token 3") is None
        assert findings.known("echo", b"token 2") is not None
        assert await ask(findings, 3) == [None]

    asyncio.run(main())


def test_a_revocation_while_the_question_waits_for_another() -> None:
    async def main() -> None:
        store = Revocations(seconds=0.02)
        findings = made(store)
        first = asyncio.create_task(ask(findings, 0))
        await asyncio.sleep(0.01)
        second = asyncio.create_task(ask(findings, 1))
        await asyncio.sleep(0)
        store.revoked_names.add("f1")
        findings.drop("f1")
        assert [one is None for one in [*await first, *await second]] == [False, True]
        # One that came in after the question: the finding counts once, and is asked about again.
        third = asyncio.create_task(ask(findings, 2))
        await asyncio.sleep(0.01)
        findings.drop("f2")
        assert isinstance((await third)[0], Finding)
        assert findings.known("echo", b"token 2") is None

    asyncio.run(main())


def test_one_that_gives_up_takes_no_one_along() -> None:
    async def main() -> None:
        findings = made(Revocations(seconds=0.02))
        impatient = asyncio.create_task(ask(findings, 0))
        patient = asyncio.create_task(ask(findings, 1))
        await asyncio.sleep(0.01)
        impatient.cancel()
        assert isinstance((await patient)[0], Finding)

    asyncio.run(main())


def test_redis_away_or_slow_is_unavailable_for_each() -> None:
    async def main() -> None:
        for store in (Revocations(away=True), Revocations(seconds=5)):
            findings = made(store)
            answers = await ask(findings, *range(5))
            assert [type(one) for one in answers] == [StoreUnavailable] * 5
            store.away, store.seconds = False, 0
            assert isinstance((await ask(findings, 5))[0], Finding)

    asyncio.run(main())


def test_a_fault_while_asking_leaves_no_one_waiting() -> None:
    class Broken(Revocations):
        async def revoked(self, *names: str) -> bool:
            raise RuntimeError

    async def main() -> None:
        findings = made(Broken())
        for _ in range(2):
            async with asyncio.timeout(1):
                assert [type(one) for one in await ask(findings, *range(3))] == [RuntimeError] * 3

    asyncio.run(main())
