"""The last flagged images: what is kept, what is shown, and to whom."""

import base64
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reluguard.detector.images import Images
from reluguard.detector.runtime import Guard
from reluguard.service.background import Running, running
from reluguard.service.client.client import Client
from reluguard.service.errors import ForbiddenError
from reluguard.service.monitoring.flagged import Flag, read_flags, write_flags
from reluguard.service.security import Scope, Tokens, token_entry
from reluguard.service.web.flags import flags_page
from reluguard.service.web.http import check_admin


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.toml"
    path.write_text(
        token_entry("t", name="pipeline", scopes=[Scope.PRIVILEGED])
        + token_entry("a", name="ops", scopes=[Scope.ADMIN])
    )
    return path


@pytest.fixture
def guarded(guard: Guard, tokens: Path) -> Iterator[Running]:
    with running(guard, name="tiny", tokens=tokens) as server:
        yield server


def get(server: Running, path: str, *authorization: str) -> tuple[int, str, Any]:
    connection = http.client.HTTPConnection(str(server.metrics_address), timeout=10)
    connection.putrequest("GET", path)
    for header in authorization:
        connection.putheader("Authorization", header)
    connection.endheaders()
    reply = connection.getresponse()
    text = reply.read().decode()
    connection.close()
    return reply.status, text, reply.headers


def basic(token: str) -> str:
    return "Basic " + base64.b64encode(f"anybody:{token}".encode()).decode()


def test_what_was_flagged_is_shown_newest_first(
    guarded: Running, guard: Guard, mixed: Images
) -> None:
    """Each flagged image with its figures and the layers that spoke loudest; no other image."""
    own = guard.inspect(mixed[:30])
    with Client(guarded.address, token="t") as client:
        for start in (0, 10, 20):
            client.inspect(mixed[start : start + 10])
    status, text, _ = get(guarded, "/flagged.json", "Bearer a")
    assert status == 200
    flags = read_flags(json.loads(text))
    rows = np.flatnonzero(own.is_adversarial)
    assert len(rows) > 3
    assert len({flag.request for flag in flags}) == len({int(row) // 10 for row in rows})
    assert [flag.time for flag in flags] == sorted((flag.time for flag in flags), reverse=True)
    found = sorted((flag.score, flag.row) for flag in flags)
    assert [row for _, row in found] == [
        int(row) % 10 for row in sorted(rows, key=lambda row: own.score[row])
    ]
    np.testing.assert_allclose([score for score, _ in found], np.sort(own.score[rows]), atol=1e-5)
    names = [tap.name for tap in guard.artifact.manifest.taps]
    (top,) = [row for row in rows if own.score[row] == own.score[rows].max()]
    loudest = flags[[flag.score for flag in flags].index(max(flag.score for flag in flags))]
    expected = sorted(zip(names, own.evidence[top].tolist(), strict=True), key=lambda p: -p[1])
    assert [name for name, _ in loudest.evidence] == [name for name, _ in expected][:5]
    assert {flag.caller for flag in flags} == {"pipeline"}
    page = get(guarded, "/flagged", basic("a"))[1]
    assert f"{loudest.score:.2f}" in page
    assert loudest.request in page
    assert loudest.request not in get(guarded, "/status.json")[1]
    assert loudest.request not in get(guarded, "/")[1]


def test_a_hundred_are_kept(guarded: Running, rough: Images) -> None:
    """The newest."""
    with Client(guarded.address, token="t") as client:
        for _ in range(6):
            client.inspect(rough)
    flags = json.loads(get(guarded, "/flagged.json", "Bearer a")[1])
    assert len(flags) == 100


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ((), 401),
        (("Bearer nobody",), 401),
        (("Basic !",), 401),
        (("Bearer a", "Bearer a"), 401),
        (("Bearer t",), 403),
        ((basic("t"),), 403),
        ((basic("a"),), 200),
        (("Bearer a",), 200),
    ],
)
def test_only_an_admin_may_look(guarded: Running, headers: tuple[str, ...], status: int) -> None:
    """A browser asks for the token where there is none; everything else stays open."""
    for path in ("/flagged", "/flagged.json"):
        got, text, told = get(guarded, path, *headers)
        assert got == status
        assert (status == 401) == ("Basic realm" in told.get("WWW-Authenticate", ""))
        assert (status == 200) == ("flagged" in text or text == "[]")
    assert get(guarded, "/")[0] == 200
    assert "href=/flagged" in get(guarded, "/")[1]


def test_without_tokens_nobody_is_an_admin(server: Running) -> None:
    """As with loading models."""
    status, text, _ = get(server, "/flagged")
    assert (status, "the server has no token file" in text) == (403, True)


@pytest.mark.parametrize("host", ["10.0.0.1", "2001:db8::1", "::ffff:10.0.0.1"])
def test_no_token_goes_over_a_network_in_plain_text(tokens: Path, host: str) -> None:
    """Who comes from elsewhere is told how to come from here, token or not."""
    with pytest.raises(ForbiddenError, match="`ssh -L` or `kubectl port-forward`"):
        check_admin(Tokens(tokens), (host, 5), ["Bearer a"])
    for here in (("127.0.0.1", 5), ("::1", 5), ("::ffff:127.0.0.1", 5), ""):
        check_admin(Tokens(tokens), here, ["Bearer a"])


def flag(**changes: Any) -> Flag:
    fields: dict[str, Any] = {
        "time": 1.0, "model": "m", "guard": "g", "caller": "c", "request": "r", "row": 0,
        "capture": "k", "prediction": 1, "score": 2.0, "p_value": 0.01, "withheld": True,
        "evidence": (("layer", 1.5), ("other", -0.5)),
    }  # fmt: skip
    return Flag(**(fields | changes))


def test_nothing_becomes_markup() -> None:
    """Names come from callers and from files."""
    odd = "<script>x</script>"
    text = flags_page(
        [flag(model=odd, caller=odd, request=odd, capture=odd, evidence=((odd, 1.0),))]
    )
    assert "<script" not in text
    assert text.count("&lt;script&gt;") == 5
    assert "withheld" in text
    assert "Nothing was flagged" in flags_page([])


def test_flags_travel_between_processes() -> None:
    """As plain values, and come out the same."""
    flags = [flag(), flag(evidence=(), capture="")]
    assert read_flags(json.loads(json.dumps(write_flags(flags)))) == flags
