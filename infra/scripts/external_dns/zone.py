"""The zone, as `aws route53` prints it -> the records of one name, or what is strange. Pure."""

import re

from external_dns.values import KINDS, Record, Refusal, Zone

OWNER = re.compile(r"external-dns/owner=([^,\"]*)")
BALANCER = re.compile(r"\.elb\.([a-z0-9-]+\.)?amazonaws\.com(\.cn)?$|\.elb\.amazonaws\.com(\.cn)?$")


def read(host, listing):
    """The name's records and all TXT records of external-dns, and refusals."""
    records, owners, refusals = {}, {}, []
    for found in listing["ResourceRecordSets"]:
        name, kind = plain(found["Name"]), found["Type"]
        identifier = found.get("SetIdentifier", "")
        if kind == "TXT":
            text = "".join(value["Value"] for value in found.get("ResourceRecords", []))
            if "heritage=external-dns" in text:
                owner = OWNER.search(text)
                owners[name, identifier] = owner[1] if owner else ""
        elif name == host and kind in KINDS and "AliasTarget" in found:
            target = plain(found["AliasTarget"]["DNSName"])
            records[kind, identifier] = Record(target, found.get("Weight"))
            if not BALANCER.search(target):
                refusals.append(strange(f"the {kind} record of {host} points to {target}, which is"
                                        " no load balancer"))
            if identifier and "Weight" not in found:
                refusals.append(strange(f"the {kind} record {identifier} of {host} is one of"
                                        " several, and not by weight"))
        elif name == host and kind in (*KINDS, "CNAME"):
            refusals.append(strange(f"the {kind} record of {host} is not an alias"))
    return Zone(host, records, owners), refusals


def delegated(host, zone_name, listing):
    """The names between the zone and the host that another zone answers for."""
    names = {plain(found["Name"]) for found in listing["ResourceRecordSets"]
             if found["Type"] == "NS"}
    return sorted(name for name in names - {zone_name} if f".{host}".endswith(f".{name}"))


def plain(name):
    """A name without the last dot, small, and with `*` and others as they are written."""
    text = re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), name)
    return text.rstrip(".").lower()


def strange(what):
    """The refusal of a record for which there are no rules here."""
    return Refusal("unknown-record", what,
                   "judge this name by hand: only aliases of load balancers are known here")


def balancer(target):
    """The load balancer of a target: external-dns and the console write its name differently."""
    target = target.lower()
    return target[len("dualstack."):] if target.startswith("dualstack.") else target
