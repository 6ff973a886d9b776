"""The verdict as lines for people. Pure."""

from external_dns.judge import STEPS
from external_dns.plan import owner


def facts(sides, zone):
    """What was found, so that somebody can see whether it is what they think it is."""
    lines = []
    for side in sides:
        place = "by default" if side.policy_place is None else f"args[{side.policy_place}]"
        version = ".".join(map(str, side.version))
        affixes = "".join(f", TXT {name} {value}" for name, value in
                          (("prefix", side.txt_prefix), ("suffix", side.txt_suffix)) if value)
        lines.append(f"{side.cluster} side: {side.deployment}, v{version}, policy {side.policy}"
                     f" ({place}), owner {side.owner}{affixes}, every {side.interval}")
        if not side.writes:
            lines.append("  it has no pods, or only --dry-run")
        elif not side.acts():
            lines.append("  its filters leave out this name or its zone")
        lines += [f"  Ingress {text}" for text in claims(side)]
    for (kind, identifier), record in sorted(zone.records.items()):
        owners = {owner(side, zone, kind, identifier) or "nobody" for side in sides}
        shown = f" (set {identifier}, weight {record.weight})" if identifier else ""
        lines.append(f"zone: {kind} {zone.host} -> {record.target}{shown}, owner"
                     f" {' or '.join(sorted(owners)) or 'unknown'}")
    return lines or ["nothing is known of either side"]


def claims(side):
    """What the Ingresses of a side ask for."""
    for claim, why in ((side.claim, ""), (side.kept_off, ", kept off")):
        if claim:
            marked = f" (set {claim.set_identifier}, weight {claim.weight})"
            yield (f"{claim.ingress}: {claim.target or 'no address yet'}"
                   f"{marked if claim.set_identifier else ''}{why}")


def changes(step, verdict):
    """What would happen."""
    lines = ["as things are:" if step == "now" else f"if {STEPS[step]}:"]
    lines += [f"  the {change.cluster} side {change}" for change in verdict.changes]
    return lines if verdict.changes else [*lines, "  no side changes a record"]


def refusals(found):
    """Each refusal by name with its remedy, or that there is none."""
    lines = []
    for refusal in dict.fromkeys(found):
        lines += [f"REFUSED {refusal.name}: {refusal.what}", f"  remedy: {refusal.remedy}"]
    return lines or ["OK: nothing dangerous is known of this step"]
