"""The rules by which external-dns changes the records of one name. Pure.

`plan` is one cycle of one side; `settle` is what becomes of a zone if all sides go on.
"""

from dataclasses import dataclass, replace
from typing import Optional

from external_dns.values import KINDS, Change, Record, Zone

# Two sides agree within three rounds. Whoever still writes after these never stops.
ROUNDS = 6


@dataclass(frozen=True)
class Era:
    """What changed between versions, as far as an alias record goes."""

    since: tuple
    # An alias counts as a CNAME, and all aliases of a name as one.
    one_kind: bool
    # Whether an AAAA record comes beside every alias; else only for a dualstack load balancer.
    always_aaaa: bool
    # By which prefixes of its name a TXT record is found, the first that is there; "" is the form
    # of 2021, without a prefix.
    reads: tuple
    writes: tuple


ERAS = (
    Era((0, 8), True, False, ("",), ("",)),
    Era((0, 12), True, False, ("cname-", "a-", "aaaa-", ""), ("", "cname-")),
    Era((0, 14), False, False, ("cname-", ""), ("", "cname-")),
    Era((0, 16), False, True, ("cname-", ""), ("", "cname-")),
    Era((0, 18), False, True, ("cname-", ""), ("cname-",)),
    Era((0, 22), False, True, ("a-", "cname-", ""), ("a-",)),
)
# Of a version that is older or newer nothing is known.
OLDEST, NEWEST = (0, 8), (0, 22)


def era(version):
    """The rules of a version."""
    return [era for era in ERAS if era.since <= version][-1]


def txt_name(side, host, prefix):
    """The name of a TXT record of a host; the prefix says of which kind of record."""
    template = "%{record_type}"
    first, _, rest = host.partition(".")
    before, after = side.txt_prefix.lower(), side.txt_suffix.lower()
    if template in before + after:
        kind = prefix.rstrip("-")
        return f"{before.replace(template, kind)}{first}{after.replace(template, kind)}.{rest}"
    return f"{before}{prefix}{first}{after}.{rest}"


def txt_names(side, host):
    """The names of the TXT records that a side writes together with an A record."""
    prefixes = [prefix for prefix in era(side.version).writes
                if prefix or not side.new_format_only]
    return [txt_name(side, host, prefix) for prefix in prefixes]


def owner(side, zone, kind, set_identifier) -> Optional[str]:
    """Who owns a record, as this side reads it; None if nobody does."""
    rules = era(side.version)
    # An AAAA record has no TXT record of the form of 2021.
    prefixes = ("aaaa-",) if kind == "AAAA" and not rules.one_kind else rules.reads
    for prefix in prefixes:
        name = txt_name(side, zone.host, prefix)
        if (name, set_identifier) in zone.owners:
            return zone.owners[name, set_identifier]
    return None


def present(side, zone, set_identifier):
    """The records of a set that this side manages: kind -> Record."""
    found = {kind: zone.records[kind, set_identifier] for kind in KINDS
             if (kind, set_identifier) in zone.records}
    if not era(side.version).one_kind:
        return {kind: record for kind, record in found.items() if kind in side.types}
    if not found or not manages_aliases(side):
        return {}
    # The one that is listed last stands for all.
    return {"A": list(found.values())[-1]}


def manages_aliases(side):
    """Whether an alias counts, for a version that takes it for a CNAME. v0.8 ignores the flag."""
    return "CNAME" in side.types or side.version < (0, 9)


def wanted(side, set_identifier):
    """The records of a set that its Ingress asks for: kind -> Record."""
    claim = side.claim
    if not claim or not claim.target or claim.set_identifier != set_identifier:
        return {}
    record = Record(claim.target, claim.weight)
    rules = era(side.version)
    if rules.one_kind:
        return {"A": record} if manages_aliases(side) else {}
    kinds = KINDS if rules.always_aaaa else ("A",)
    return {kind: record for kind in kinds if kind in side.types}


def same(one, other):
    """Whether two records differ in nothing that external-dns would change."""
    return one.target.lower() == other.target.lower() and one.weight == other.weight


def plan(side, zone):
    """What this side does to the name in its next cycle."""
    if not side.acts():
        return []
    sets = {identifier for _, identifier in zone.records}
    if side.claim:
        sets.add(side.claim.set_identifier)
    changes = []
    for identifier in sorted(sets):
        changes += plan_of_set(side, zone, identifier)
    allowed = {
        "sync": ("creates", "updates", "deletes"),
        "upsert-only": ("creates", "updates"),
        "create-only": ("creates",),
    }[side.policy]
    return [change for change in changes if change.verb in allowed]


def plan_of_set(side, zone, identifier):
    """The same for one set identifier, before the policy takes its part away."""
    def change(verb, kind, record):
        return Change(side.cluster, verb, kind, identifier, record)

    there, asked = present(side, zone, identifier), wanted(side, identifier)
    owned = {kind: owner(side, zone, kind, identifier) == side.owner for kind in there}
    changes = []
    for kind in KINDS:
        if kind in there and kind in asked:
            if owned[kind] and not same(there[kind], asked[kind]):
                changes.append(change("updates", kind, asked[kind]))
        elif kind in there:
            if owned[kind]:
                changes.append(change("deletes", kind, there[kind]))
        # A name without records belongs to nobody, so whoever asks for it gets it.
        elif kind in asked and all(owned.values()):
            changes.append(change("creates", kind, asked[kind]))
    if side.claim and side.claim.dualstack and not era(side.version).always_aaaa:
        # These versions write the AAAA record along with the A record.
        changes += [replace(found, kind="AAAA") for found in changes if found.verb != "deletes"]
    return changes


def apply(side, zone, changes):
    """The zone after one batch of changes, or None if Route 53 refuses the batch."""
    records, owners = dict(zone.records), dict(zone.owners)
    for change in changes:
        key, rules = (change.kind, change.set_identifier), era(side.version)
        prefixes = ("aaaa-",) if change.kind == "AAAA" else rules.writes
        if side.new_format_only:
            prefixes = tuple(prefix for prefix in prefixes if prefix)
        texts = [(txt_name(side, zone.host, prefix), change.set_identifier) for prefix in prefixes]
        if change.verb == "deletes":
            records.pop(key, None)
            for text in texts:
                owners.pop(text, None)
        else:
            records[key] = change.record
            owners.update((text, side.owner) for text in texts)
    for kind in KINDS:
        sets = {identifier for found, identifier in records if found == kind}
        if "" in sets and len(sets) > 1:
            return None
    return Zone(zone.host, records, owners)


@dataclass(frozen=True)
class Outcome:
    """What becomes of a zone: its end, each change on the way, and what never ends."""

    zone: Zone
    changes: tuple
    # The changes that Route 53 refuses, because simple and weighted records clash.
    refused: tuple
    fights: bool


def settle(sides, zone):
    """All sides in turn, round by round, until none of them changes anything."""
    changes, refused = [], []
    for _ in range(ROUNDS):
        changed = False
        for side in sides:
            batch = plan(side, zone)
            after = apply(side, zone, batch)
            if after is None:
                refused += [change for change in batch if change not in refused]
            elif after != zone:
                changes += [change for change in batch if change not in changes]
                zone, changed = after, True
        if not changed:
            return Outcome(zone, tuple(changes), tuple(refused), False)
    return Outcome(zone, tuple(changes), tuple(refused), True)
