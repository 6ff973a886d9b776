"""Pure: what a record set of Route 53 says, as the aws command line gives it."""

import re

from dns_switch import Refused

# The DNS name of a Network Load Balancer has `elb` before its region instead.
ALB_NAME = re.compile(
    r"(?:dualstack\.)?([a-z0-9-]+\.([a-z]{2}[a-z-]*-\d+)\.elb\.amazonaws\.com(?:\.cn)?)\.?")


def key(one):
    """What Route 53 tells record sets apart by."""
    return one["Name"], one["Type"], one.get("SetIdentifier", "")


def addresses(sets):
    """The A and AAAA of some record sets."""
    return [one for one in sets if one["Type"] != "TXT"]


def alb_of(name):
    """The DNS name of an ALB, without `dualstack.`; refuses what is not one."""
    found = ALB_NAME.fullmatch(name.lower())
    if not found:
        raise Refused(f"{name} is not the DNS name of an Application Load Balancer"
                      " (NAME.REGION.elb.amazonaws.com)")
    return found.group(1)


def region_of(alb):
    """The region of an ALB, from its DNS name."""
    return ALB_NAME.fullmatch(alb).group(2)


def target(one):
    """The ALB that a record set is an alias of."""
    if "AliasTarget" not in one:
        raise Refused(f"{label_of(one)} is no alias of a load balancer")
    try:
        return alb_of(one["AliasTarget"]["DNSName"])
    except Refused as error:
        raise Refused(f"{label_of(one)} is an alias of something else: {error}") from None


def label_of(one):
    """A record set, for people."""
    identifier = f" ({one['SetIdentifier']})" if "SetIdentifier" in one else ""
    return f"{one['Name']} {one['Type']}{identifier}"


def line(one):
    """A record set as one line."""
    value = (one["AliasTarget"]["DNSName"] if "AliasTarget" in one
             else " ".join(record["Value"] for record in one.get("ResourceRecords", ())))
    weighs = f", weight {one['Weight']}" if "Weight" in one else ""
    return f"  {label_of(one)}{weighs}: {value}"


def describe(change):
    """A change, for people."""
    verb = {"DELETE": "deletes", "CREATE": "creates", "UPSERT": "repeats"}[change["Action"]]
    return f"{verb} {label_of(change['ResourceRecordSet'])}"
