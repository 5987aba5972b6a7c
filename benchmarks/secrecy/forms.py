"""The owner's guards, and who attacks them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.secrecy.attacking import Plan
from benchmarks.secrecy.guards import Form, Party

__all__ = ["PLAIN", "Kind", "kinds_of", "plans_of"]

PLAIN, HALF, LOOKS = "reads all", "half of the rates", "looks at the mirror"
WEIGHTS, OTHER = "has its weights", "has another seed's, of the same images"
OWN, OWN_SECRETS = "own guard", "mean of own secrets"
OWN_MIRROR, OWN_VIEWS = "own mirror", "mean of own views"
OTHERS = 3  # secrets that the attacker draws to learn what guards with one have in common


@dataclass(frozen=True, slots=True)
class Kind:
    """Guards of one form: as many as secrets, or views.

    Attributes:
        name: of the form.
        forms: of the guards.
        beside: the name of the form without a secret.
        attackers: the names of the plans against it, and what they are called here.
        pick: "" for each guard alone, "keyed" where a secret picks one for each image, "any" for an
            attacker who changes a pixel and tries again until the most careless one looks.
        costs: whether what it detects is to be told: not where other rows are of the same guards.
    """

    name: str
    forms: tuple[Form, ...]
    beside: str
    attackers: tuple[tuple[str, str], ...]
    pick: str = ""
    costs: bool = True


def kinds_of(secrets: int, views: Sequence[str]) -> list[Kind]:
    """Return the owner's guards.

    Args:
        secrets: how many of each form.
        views: that a second look may be taken at; none leaves second looks out.
    """
    own = ((OWN, OWN), (OWN_SECRETS, OWN_SECRETS))
    seeds = range(secrets)
    plain = tuple(Form("plain", seed=i) for i in seeds)
    half = tuple(Form("half", share=0.5, secret=f"owner {i}", seed=i) for i in seeds)
    quarter = tuple(Form("quarter", share=0.25, secret=f"owner {i}", seed=i) for i in seeds)
    taps = tuple(Form("taps", share=0.5, by="taps", secret=f"owner {i}", seed=i) for i in seeds)
    found = [
        Kind(PLAIN, plain, PLAIN, own),
        Kind(PLAIN, plain[1:], PLAIN, ((PLAIN, OTHER),), costs=False),
        Kind(PLAIN, plain[:1], PLAIN, ((PLAIN, WEIGHTS),), costs=False),
        Kind(HALF, half, PLAIN, own),
        Kind(HALF, half[1:], PLAIN, ((HALF, "has another secret's, of the same images"),),
             costs=False),
        Kind(HALF, half[:1], PLAIN, ((HALF, f"{WEIGHTS} and secret"),), costs=False),
        Kind("a quarter of the rates", quarter, PLAIN, own),
        Kind("half of the taps", taps, PLAIN, own),
        Kind(f"one of {secrets} halves for each image", half, PLAIN, own, "keyed", costs=False),
        Kind(f"any of {secrets} halves, tried again", half, PLAIN, own, "any", costs=False),
    ]  # fmt: skip
    if views:
        looks, many = tuple(Form("view", view=view) for view in views), len(views)
        two = ((OWN_MIRROR, OWN_MIRROR), (OWN_VIEWS, OWN_VIEWS))
        found += [
            Kind(LOOKS, looks[:1], LOOKS, two),
            Kind(f"one of {many} views", looks, LOOKS, two),
            Kind(f"one of {many} views for each image", looks, LOOKS, two, "keyed", costs=False),
            Kind(f"any of {many} views, tried again", looks, LOOKS, two, "any", costs=False),
        ]
    return found


def plans_of(owner: Party, attacker: Party, views: Sequence[str]) -> list[Plan]:
    """Return the attackers; two have weights of the owner's, the others guards of their own."""
    drawn = Form("half", share=0.5)
    secrets = tuple(replace(drawn, secret=f"attacker {i}", seed=10 + i) for i in range(OTHERS))
    found = [
        Plan(OWN, attacker, (Form("plain", seed=10),)),
        Plan(OWN_SECRETS, attacker, secrets),
        Plan(PLAIN, owner, (Form("plain"),)),
        Plan(HALF, owner, (replace(drawn, secret="owner 0"),)),
    ]
    if views:
        looks = tuple(Form("view", view=view, seed=10) for view in views)
        found += [Plan(OWN_MIRROR, attacker, looks[:1]), Plan(OWN_VIEWS, attacker, looks)]
    return found
