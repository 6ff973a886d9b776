"""The values that the decision is about: two clusters' sides, one zone, changes, refusals. Pure."""

from dataclasses import dataclass, field
from typing import Optional

# The kinds of record that an alias can be, as Route 53 lists them.
KINDS = ("A", "AAAA")


@dataclass(frozen=True)
class Refusal:
    """Something dangerous or unknown, by a name that does not change, and what to do about it."""

    name: str
    what: str
    remedy: str


@dataclass(frozen=True)
class Claim:
    """What an Ingress asks of external-dns for the name."""

    ingress: str
    target: str
    set_identifier: str = ""
    weight: Optional[int] = None
    dualstack: bool = False


@dataclass(frozen=True)
class Side:
    """One external-dns, with what its cluster asks of it."""

    cluster: str  # old or new
    deployment: str
    version: tuple
    policy: str
    # At which place of args the policy is, for whoever patches it; None if it is the default.
    policy_place: Optional[int]
    owner: str
    interval: str
    role: str
    annotation_prefix: str = ""
    txt_prefix: str = ""
    txt_suffix: str = ""
    types: frozenset = frozenset({"A", "AAAA", "CNAME"})
    new_format_only: bool = False
    # Whether its filters let it see the zone, and the name.
    sees_zone: bool = True
    sees_host: bool = True
    # False if it is scaled to zero, or only prints what it would do.
    writes: bool = True
    claim: Optional[Claim] = None
    # What it would claim without the annotation that keeps it off.
    kept_off: Optional[Claim] = None

    def acts(self):
        """Whether it can change a record of the name at all."""
        return self.writes and self.sees_zone and self.sees_host


@dataclass(frozen=True)
class Record:
    """An alias record: where it points, and its weight if it is one of several."""

    target: str
    weight: Optional[int] = None


@dataclass(frozen=True)
class Zone:
    """The records of one name, and who owns them by the TXT records beside them."""

    host: str
    # (kind, set identifier) -> Record
    records: dict = field(default_factory=dict)
    # (name of the TXT record, set identifier) -> owner
    owners: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """What one external-dns does to one record in one cycle."""

    cluster: str
    verb: str  # creates, updates or deletes
    kind: str
    set_identifier: str
    record: Record

    def __str__(self):
        marked = f" of set {self.set_identifier}" if self.set_identifier else ""
        weight = "" if self.record.weight is None else f" with weight {self.record.weight}"
        way = "which points" if self.verb == "deletes" else "to point"
        return f"{self.verb} the {self.kind} record{marked}, {way} to {self.record.target}{weight}"
