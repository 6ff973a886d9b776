"""What is dangerous about a step of the move: sides, zone, step -> changes and refusals. Pure.

A step is what the operator is about to do. It is done to the values, and then both sides go on by
the rules of `plan` until nothing changes, whichever of them comes first.
"""

from dataclasses import dataclass, replace

from external_dns import plan
from external_dns.values import KINDS, Refusal
from external_dns.zone import balancer

STEPS = {
    "now": "nothing: what both sides do as things are",
    "new-flags": "the patch is applied to the new side's external-dns",
    "live": "the overlay live is applied to the new cluster",
    "dark": "the overlay dark is applied to the new cluster",
    "old-create-only": "the old side's policy becomes create-only",
    "old-upsert-only": "the old side's policy becomes upsert-only, which is the way back",
    "remove-old-ingress": "the Ingress of the old cluster is deleted",
}


@dataclass(frozen=True)
class Verdict:
    """What would happen after a step, and what speaks against it."""

    changes: tuple
    refusals: tuple


def after_step(step, side):
    """A side after the step is done."""
    old = side.cluster == "old"
    if step == "live" and not old:
        return replace(side, claim=side.claim or side.kept_off, kept_off=None)
    if step == "dark" and not old:
        return replace(side, claim=None, kept_off=side.claim or side.kept_off)
    if step in ("old-create-only", "old-upsert-only") and old:
        return replace(side, policy=step.partition("-")[2])
    if step == "remove-old-ingress" and old:
        return replace(side, claim=None, kept_off=None)
    return side


def judge(step, sides, zone, guard):
    """The verdict on a step. `guard` is the prefix of the annotation that the overlay dark has."""
    stepped = [after_step(step, side) for side in sides]
    outcomes = [plan.settle(order, zone) for order in (stepped, stepped[::-1])]
    changes = tuple(dict.fromkeys(change for found in outcomes for change in found.changes))
    ends = [found.zone for found in outcomes]
    refusals = [*writes(step, zone, outcomes, changes), *splits(ends, changes)]
    if step == "dark" and guard:
        refusals += unguarded(sides, guard)
    cluster = {"live": "new", "old-upsert-only": "old"}.get(step)
    if cluster:
        refusals += obstacles_of(stepped, zone, cluster)
    if step == "live":
        refusals += way_back(stepped, ends)
    if cluster and not refusals and simple(zone):
        refusals += switch(stepped, zone, ends, cluster)
    if step == "remove-old-ingress":
        refusals += still_old(sides, zone)
    if not any(kind == "A" for kind, _ in zone.records):
        refusals.append(Refusal(
            "record-missing", f"{zone.host} has no A record of a load balancer: whichever side"
            " comes first creates it, even with create-only",
            "put it back first: infra/scripts/dns-switch back, or the change batch that made it"))
    return Verdict(changes, tuple(dict.fromkeys(refusals)))


def writes(step, zone, outcomes, changes):
    """What is dangerous about the changes themselves."""
    found = []
    fighters = sorted({change.cluster for change in changes})
    # Deleted and created in turn is named below, with a remedy of its own.
    deletes = any(change.verb == "deletes" for change in changes)
    if any(outcome.fights for outcome in outcomes) and not deletes:
        found.append(Refusal(
            "fight", f"the sides ({' and '.join(fighters)}) overwrite each other's record of"
            f" {zone.host} in every cycle",
            "one side lets go first: the old side by --policy=create-only, or the new side by the"
            " overlay dark"))
    for change in first_per_side(change for change in changes if change.verb == "deletes"):
        found.append(Refusal(
            "deletes-live", f"the {change.cluster} side {change}: clients get no answer",
            f"give the {change.cluster} side --policy=upsert-only or create-only, or scale its"
            " external-dns to zero, and wait for the rollout"))
    for change in changes:
        if change.verb == "creates" and change.kind == "AAAA":
            found.append(Refusal(
                "aaaa-appears", f"the {change.cluster} side {change}, which no other side takes"
                " along when the A record moves",
                f"give the {change.cluster} side --managed-record-types=A (of v0.14 or later;"
                " before that, make its load balancer ipv4)"))
    for change in first_per_side(refused for outcome in outcomes for refused in outcome.refused):
        found.append(Refusal(
            "clash", f"the {change.cluster} side {change}, and Route 53 refuses that: simple and"
            " weighted records of one name exclude each other. Nothing moves",
            "annotations alone cannot begin or end weights: use infra/scripts/dns-switch weighted"
            " or simple, and make the set-identifier of both Ingresses agree with the zone"))
    loud = [change for change in changes if change.cluster == "new" and change.verb != "deletes"]
    if step == "dark" and loud:
        found.append(Refusal(
            "not-dark", f"the new side {loud[0]} although its Ingress is dark",
            "see above which other external-dns of that cluster does not heed the annotation"))
    return found


def first_per_side(changes):
    """The first change of each cluster: the others are refused for the same reason."""
    found = {}
    for change in changes:
        found.setdefault(change.cluster, change)
    return found.values()


def unguarded(sides, guard):
    """New sides that would not read the annotation of the overlay dark."""
    for side in sides:
        if side.cluster == "new" and not side.kept_off and side.annotation_prefix != guard:
            yield Refusal(
                "guard-ignored", f"the new side ({side.deployment}) reads"
                f" {side.annotation_prefix}controller alone, and the overlay dark has"
                f" {guard}controller: with it the Ingress would be live",
                "pin the prefix first (infra/k8s/external-dns/new, v0.20 or later), or give the"
                f" overlay {side.annotation_prefix}controller and this command --guard-prefix"
                f" {side.annotation_prefix}")


def splits(ends, changes):
    """Whether the name would lead to one load balancer by IPv4 and to another by IPv6."""
    for end in ends:
        for kind, identifier in end.records:
            other = end.records.get(("A", identifier))
            record = end.records[kind, identifier]
            if kind == "AAAA" and other and balancer(record.target) != balancer(other.target):
                remedy = "delete the AAAA record and its TXT record (infra/scripts/dns-switch)"
                if any(change.kind == "AAAA" for change in changes):
                    remedy = "give both sides --managed-record-types=A, so that none is made"
                return [Refusal(
                    "aaaa-stays", f"in the end the A record points to {other.target}, and the AAAA"
                    f" record to {record.target}", remedy)]
    return []


def simple(zone):
    """Whether the name has no weighted records."""
    return all(not identifier for _, identifier in zone.records)


def points_to(zone):
    """The load balancers that clients get: those of records with a weight above zero."""
    return {balancer(record.target) for record in zone.records.values() if record.weight != 0}


def claimed(sides, cluster):
    """The load balancers of a cluster's Ingress."""
    found = [side.claim or side.kept_off for side in sides if side.cluster == cluster]
    return {balancer(claim.target) for claim in found if claim and claim.target}


def switch(sides, zone, ends, cluster):
    """That the name would not come to point to a cluster, if so: nothing else says why."""
    wanted = claimed([side for side in sides if side.claim], cluster)
    if any(points_to(end) != wanted for end in ends):
        return [Refusal(
            "no-switch", f"{zone.host} would not come to point to the {cluster} cluster alone",
            "see above which side writes what")]
    return []


def obstacles_of(sides, zone, cluster):
    """What keeps a cluster from writing the record."""
    mine = [side for side in sides if side.cluster == cluster]
    if any(side.claim for side in mine):
        return [refusal for side in mine if side.claim for refusal in obstacles(side, zone)]
    remedy = "apply infra/k8s/overlays/dark first, or name the one that will: --new-ingress"
    return [Refusal(
        "no-ingress", f"no Ingress of the {cluster} cluster that its external-dns reads names"
        f" {zone.host}", remedy if cluster == "new" else "give the old Ingress its host again")]


def obstacles(side, zone):
    """What keeps one side from writing the record."""
    name = f"the {side.cluster} side ({side.deployment})"
    if not side.claim.target:
        yield Refusal("no-load-balancer", f"{name}: Ingress {side.claim.ingress} has no address",
                      "wait until `kubectl get ingress` shows one; if not, see its events")
    if not side.sees_zone or not side.sees_host:
        what = "the zone" if not side.sees_zone else zone.host
        yield Refusal("zone-not-covered", f"{name}: its filters leave out {what}",
                      "widen --domain-filter, --zone-id-filter or --aws-zone-type")
    if not side.writes:
        yield Refusal("stopped", f"{name} has no pods, or only --dry-run",
                      "scale it to one pod, and take --dry-run out of its args")
    if side.policy == "create-only":
        yield Refusal("creates-only", f"{name}: its policy is create-only, and the record exists",
                      "give it --policy=upsert-only")
    for kind, identifier in zone.records:
        if identifier == side.claim.set_identifier and kind == "A":
            owner = plan.owner(side, zone, kind, identifier)
            if owner is None:
                yield Refusal(
                    "no-owner", f"{name} finds no TXT record that says who owns the {kind} record,"
                    " so it never writes it",
                    "give it the --txt-prefix and --txt-suffix of the other side; if the TXT record"
                    " is gone, put it back")
            elif owner != side.owner:
                yield Refusal(
                    "two-owners", f"{name} is {side.owner}, and the record belongs to {owner}: the"
                    " switch would silently never happen",
                    f"give it --txt-owner-id={owner}, or switch by infra/scripts/dns-switch")


def way_back(stepped, ends):
    """Whether going dark again, after live, would delete the record."""
    for end in ends:
        back = [after_step("dark", side) for side in stepped]
        for change in plan.settle(back, end).changes:
            if change.verb == "deletes":
                return [Refusal(
                    "no-way-back", f"after live, going dark again: the {change.cluster} side"
                    f" {change}",
                    f"give the {change.cluster} side --policy=upsert-only first")]
    return []


def still_old(sides, zone):
    """Whether clients still get the load balancer that goes with the Ingress."""
    if points_to(zone) & claimed(sides, "old"):
        kinds = [kind for kind in KINDS if any(found == kind for found, _ in zone.records)]
        return [Refusal(
            "still-old", f"{zone.host} ({', '.join(kinds)}) still points to the load balancer of"
            " the old cluster, which goes with its Ingress",
            "switch first, and wait until the old load balancer has no requests")]
    return []
