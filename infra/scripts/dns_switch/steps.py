"""Pure: the steps, each from the record sets that the zone holds to those that it shall hold."""

from dns_switch import Refused
from dns_switch.record_sets import addresses, key, label_of, line, target

FORMAT = 1


def beginning(current, arguments):
    """What is saved: the simple record sets of one ALB, which is not the new one."""
    for one in current:
        if "SetIdentifier" in one:
            raise Refused(f"{label_of(one)} is weighted already, and nothing was saved as"
                          f" {arguments.saved}: give the file of that switch, or undo it by hand")
    old = {target(one) for one in addresses(current)}
    if len(old) > 1:
        raise Refused(f"A and AAAA point at different load balancers: {', '.join(sorted(old))}")
    if old == {arguments.to}:
        raise Refused(f"{arguments.name} points at {arguments.to} already, and what was before is"
                      f" not in {arguments.saved}: give the file of that switch")
    return {"format": FORMAT, "zone": arguments.zone, "name": arguments.name, "to": arguments.to,
            "record_sets": current}


def step_of(current, saved, arguments):
    """Which step the zone is at: "old", "flipped", "weighted", or why it is none."""
    if current == saved["record_sets"]:
        return "old"
    found = addresses(current)
    if not any(one["Type"] == "A" for one in found):
        return f"the zone holds no A of {saved['name']}: `back` restores what was saved"
    if found == addresses(saved["record_sets"]):
        return (f"the addresses are those that were saved, but a TXT differs: if nothing is"
                f" switched now, move {arguments.saved} away, and begin anew")
    old = target(addresses(saved["record_sets"])[0])
    seen = {}
    for one in found:
        seen.setdefault(one["Type"], {})[one.get("SetIdentifier")] = (
            target(one), one.get("Weight"))
    if all(pair == {None: (saved["to"], None)} for pair in seen.values()):
        return "flipped"
    weights = [pair.get(arguments.new_id, ("", -1))[1] for pair in seen.values()]
    pair = {arguments.old_id: (old, 100 - weights[0]), arguments.new_id: (saved["to"], weights[0])}
    if all(one == pair for one in seen.values()):
        return "weighted"
    return (f"the zone holds neither what was saved nor what a step makes:"
            f" {'; '.join(line(one) for one in found)}. `back` restores what was saved")


def flip(current, saved, arguments):
    """Every address points at the new ALB."""
    step = step_of(current, saved, arguments)
    if step == "weighted":
        raise Refused("weighted record sets exist beside: end them with `weight 100` and `simple`,"
                      " or with `back`")
    if step == "flipped":
        return current
    require(step, "old")
    return [pointed(one, arguments) for one in current]


def weighted(current, saved, arguments):
    """Each record set twice: the old one with 100, one for the new ALB with 0."""
    step = step_of(current, saved, arguments)
    if step == "weighted":
        return current
    if step == "flipped":
        raise Refused("the name points at the new load balancer alone: `back` first")
    require(step, "old")
    old = [{**one, "SetIdentifier": arguments.old_id, "Weight": 100} for one in current]
    new = [{**pointed(one, arguments), "SetIdentifier": arguments.new_id, "Weight": 0}
           for one in current]
    return sorted(old + new, key=key)


def weight(current, saved, arguments):
    """The new weights. A TXT that external-dns added meanwhile takes part."""
    require(step_of(current, saved, arguments), "weighted")
    weights = {arguments.new_id: arguments.percent, arguments.old_id: 100 - arguments.percent}
    return [{**one, "Weight": weights[one["SetIdentifier"]]}
            if one.get("SetIdentifier") in weights else one for one in current]


def simple(current, saved, arguments):
    """The pair of each name and type becomes its new one."""
    step = step_of(current, saved, arguments)
    if step == "flipped":
        return current
    require(step, "weighted")
    if any(one["Weight"] for one in addresses(current)
           if one["SetIdentifier"] == arguments.old_id):
        raise Refused("the old load balancer still gets a share: `weight 100` first")
    kept = {}
    for one in current:
        # A TXT may have only one of the two.
        if key(one)[:2] not in kept or one.get("SetIdentifier") == arguments.new_id:
            kept[key(one)[:2]] = {name: value for name, value in one.items()
                                  if name not in ("SetIdentifier", "Weight")}
    return sorted(kept.values(), key=key)


def back(_current, saved, _arguments):
    """What was saved. What was made since under these names goes."""
    return saved["record_sets"]


STEPS = {"flip": flip, "weighted": weighted, "weight": weight, "simple": simple, "back": back}


def require(step, wanted):
    """Refuses unless the zone is at this step."""
    at = {"old": "the name points at the old load balancer alone: `weighted` first",
          "flipped": "the name points at the new load balancer alone: there are no weights"}
    if step != wanted:
        raise Refused(at.get(step, step))


def pointed(one, arguments):
    """An address, pointed at the new ALB; a TXT as it is."""
    if one["Type"] == "TXT":
        return one
    return {**one, "AliasTarget": {**one["AliasTarget"], "HostedZoneId": arguments.alb_zone,
                                   "DNSName": f"{arguments.to}."}}


def difference(current, wanted):
    """What leads from one to the other. What goes is named exactly: any other value refuses all."""
    gone = [one for one in current if one not in wanted]
    made = [one for one in wanted if one not in current]
    return [{"Action": action, "ResourceRecordSet": one}
            for action, sets in (("DELETE", gone), ("CREATE", made)) for one in sets]
