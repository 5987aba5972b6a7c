"""What a server says of itself, asked for by somebody else: fetched, and put into words."""

import contextlib
import http.client
import json
import socket
from collections.abc import Mapping
from typing import Any

from reluguard.service.places import Place

__all__ = ["fetch_status", "in_words"]

_MAX_BYTES = 2**24
_NAME = 16  # characters of a digest that name a version on its shelf


def fetch_status(address: str, *, timeout_s: float = 5.0) -> dict[str, Any]:
    """Return what `/status.json` of a server's metrics port says.

    Raises:
        OSError: nobody answers there, or somebody else.
        SettingsError: it is no address.
    """
    place = Place.of(address, 0)
    connection = _Connection(place, timeout=timeout_s)
    url = f"http://{address}/status.json"
    with contextlib.closing(connection):
        try:
            connection.request("GET", "/status.json")
            data = connection.getresponse().read(_MAX_BYTES)
        except http.client.HTTPException as error:
            raise OSError(f"expected a reluguard server's status at {url}, got no HTTP") from error
    try:
        document = json.loads(data)
    except ValueError as error:
        raise OSError(f"expected a reluguard server's status at {url}, got no JSON") from error
    if not isinstance(document, dict) or not {"state", "models"} <= set(document):
        raise OSError(f"expected a reluguard server's status at {url}, got other JSON")
    return document


class _Connection(http.client.HTTPConnection):
    """HTTP to a place, a unix socket too, and never by way of a proxy."""

    def __init__(self, place: Place, *, timeout: float) -> None:
        super().__init__(place.host or "localhost", place.port, timeout=timeout)
        self._path = place.path

    def connect(self) -> None:
        """Connect."""
        if not self._path:
            super().connect()
            return
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def in_words(document: Mapping[str, Any]) -> list[str]:
    """Return the lines a person reads of what `fetch_status` gave."""
    lines = [f"{document['state']}, version {document['version']}, at {document['when']}"]
    if document.get("room"):
        memory = document["room"]["memory_bytes"] / 2**20
        lines.append(f"callers can make it hold {memory:,.0f} MiB more than it does idle")
    if document.get("watch"):
        lines += _watch(document["watch"])
    for model in document["models"]:
        lines += [*_guard(model), *_challenger(model), *_captures(model)]
        for change in model["changes"][:1]:
            gate = {True: "passed", False: "refused"}.get(change["passed"], "not asked")
            lines.append(f"  last change: {change['action']}, gate {gate}: {change['why']}")
    return lines


def _watch(watch: Mapping[str, Any]) -> list[str]:
    callers, suspects = watch["callers"], watch["under_suspicion"]
    lines = [f"question streams: {callers} callers remembered, {suspects} under suspicion"]
    for one in watch["suspects"]:
        near, asked = f"{one['near']:.0f} near-equal questions of late", f"{one['asked']} in all"
        lines.append(f"  {one['caller']}: {near}, {asked}")
    return lines


def _guard(model: Mapping[str, Any]) -> list[str]:
    guard, hour = model["guard"], model["hour"]
    digest = guard["digest"][:_NAME] if guard else "-"
    lines = [f"{model['name']}: {model['state']}, guard {digest}"]
    if guard and guard.get("flags"):  # an older server does not say
        whose = " of each class" if guard["by_class"] else ""
        lines.append(f"  flags {guard['flags']}: {guard['target_fpr']:.2%} of clean images{whose}")
    lines.append(
        f"  last hour: {hour['images']} images, {hour['adversarial']} adversarial, "
        f"{hour['unscored']} unscored"
    )
    if guard and guard["second_look"]:
        lines.append(
            f"  looks again: {guard['second_look']}; {hour['looked_again']} images since start"
        )
    return lines


def _challenger(model: Mapping[str, Any]) -> list[str]:
    lines, rival = [], model["challenger"]
    if rival:
        agreed = rival["agreement"]
        lines.append(
            f"  challenger {rival['guard']['digest'][:_NAME]} since {rival['since']}: both "
            f"flag {agreed['both']}, only it {agreed['challenger_only']}, only the champion "
            f"{agreed['champion_only']}, neither {agreed['neither']}"
        )
    if model["challenger_refused"]:
        lines.append("  challenger: refused, the server's log says why")
    return lines


def _captures(model: Mapping[str, Any]) -> list[str]:
    lines = []
    if model["captured"]:
        waiting = sum(model["captured"]["waiting"].values())
        lines.append(f"  captured: {model['captured']['images']}, {waiting} wait for labels")
    if model["drift"]:
        suspect = model["drift"]["suspect"]
        whose = f", {suspect} sends what is unlike calibration" if suspect else ""
        lines.append(f"  drift: {model['drift']['advice']}{whose}")
    return lines
