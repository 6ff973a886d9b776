"""What AWS holds: the record sets of a name, and the load balancer that it shall point at."""

import json
import os
import re
import subprocess

from dns_switch import Refused
from dns_switch.record_sets import addresses, key, label_of, region_of, target

HERITAGE = "heritage=external-dns"
TEMPLATE = "%{record_type}"
# What a record set may have for us to understand it: no other routing, no health check.
FIELDS = {"Name", "Type", "TTL", "ResourceRecords", "AliasTarget", "SetIdentifier", "Weight"}
CALL_SECONDS = 180


class AwsError(Exception):
    """What a call of AWS ended with; `code` is AWS's own, or empty if there was no answer."""

    def __init__(self, text):
        super().__init__(text)
        found = re.search(r"An error occurred \((\w+)\)", text)
        self.code = found.group(1) if found else ""


def aws(service, operation, *words):
    """Calls AWS by its command line, which retries throttled calls, and gives the answer."""
    environment = {"AWS_RETRY_MODE": "standard", "AWS_MAX_ATTEMPTS": "8", **os.environ,
                   "AWS_PAGER": ""}
    command = ["aws", service, operation, *words, "--output", "json",
               "--cli-connect-timeout", "5", "--cli-read-timeout", "20"]
    try:
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=CALL_SECONDS)
    except FileNotFoundError:
        raise Refused("aws is not on the PATH: install the AWS command line") from None
    except subprocess.TimeoutExpired:
        raise AwsError(f"{service} {operation}: no answer in {CALL_SECONDS} s") from None
    if done.returncode:
        raise AwsError(done.stderr.strip())
    return json.loads(done.stdout)


def record_sets(arguments):
    """All record sets of the zone. Refuses if it is not the one that answers for the name."""
    every = listed(arguments)
    # Every zone has its SOA under its own name.
    zone = next((one["Name"] for one in every if one["Type"] == "SOA"), "without a SOA")
    if arguments.name != zone and not arguments.name.endswith(f".{zone}"):
        raise Refused(f"the zone {arguments.zone} is {zone}, which does not hold {arguments.name}")
    for one in every:
        below = arguments.name == one["Name"] or arguments.name.endswith(f".{one['Name']}")
        if one["Type"] == "NS" and one["Name"] != zone and below:
            raise Refused(f"{one['Name']} is delegated to another zone, which answers for"
                          f" {arguments.name}: give the id of that one")
    return every


def listed(arguments):
    """All record sets of the zone; the aws command line turns the pages."""
    answer = aws("route53", "list-resource-record-sets", "--hosted-zone-id", arguments.zone)
    return answer["ResourceRecordSets"]


def ours(every, arguments):
    """The record sets of the name: addresses, and the TXT of external-dns, in one order."""
    names = txt_names(arguments)
    found = []
    for one in every:
        address = one["Name"] == arguments.name and one["Type"] in ("A", "AAAA")
        values = " ".join(record["Value"] for record in one.get("ResourceRecords", ()))
        owner = one["Type"] == "TXT" and one["Name"] in names and HERITAGE in values
        if address or owner:
            found.append(one)
    return sorted(found, key=key)


def txt_names(arguments, kinds=("", "a", "aaaa", "cname")):
    """Every name under which a release of external-dns has put the TXT of our name.

    Until v0.11 that was the name itself; since then the record type stands before it, for an alias
    of an ALB `cname`, later `a`.
    """
    label, _, rest = arguments.name.partition(".")
    names = set()
    for kind in kinds:
        prefix = arguments.txt_prefix.lower().replace(TEMPLATE, kind)
        suffix = arguments.txt_suffix.lower().replace(TEMPLATE, kind)
        in_affix = TEMPLATE in arguments.txt_prefix + arguments.txt_suffix
        typed = f"{kind}-{label}" if kind and not in_affix else label
        names.add(f"{prefix}{typed}{suffix}.{rest}")
    return names


def refuse_what_is_not_understood(every, current, arguments):
    """Refuses a name that holds more, less or other than these steps know."""
    for one in every:
        if one["Name"] == arguments.name and one["Type"] == "CNAME":
            raise Refused(f"{arguments.name} is a CNAME, not an alias of a load balancer")
    for one in current:
        unknown = set(one) - FIELDS
        if unknown or ("SetIdentifier" in one) != ("Weight" in one):
            raise Refused(f"{label_of(one)} is neither simple nor weighted:"
                          f" {', '.join(sorted(unknown)) or 'a set identifier without a weight'}")
    if arguments.command == "back":
        return
    if not any(one["Type"] == "A" for one in current):
        raise Refused(f"the zone holds no A of {arguments.name}")
    for one in addresses(current):
        target(one)
    owned = any(one["Type"] == "TXT" for one in current)
    if not owned and not arguments.without_txt:
        raise Refused(f"external-dns has no TXT for {arguments.name} (looked for"
                      f" {', '.join(sorted(txt_names(arguments)))}): give --txt-prefix or"
                      " --txt-suffix as its Deployment has them, or --without-txt")


def alias_zone(current, arguments):
    """The hosted zone of the new ALB, for an alias. Refuses an ALB that cannot take traffic."""
    region = region_of(arguments.to)
    answer = aws("elbv2", "describe-load-balancers", "--region", region)
    found = [one for one in answer["LoadBalancers"] if one["DNSName"].lower() == arguments.to]
    if not found:
        raise Refused(f"there is no load balancer {arguments.to} in {region} of this account")
    alb = found[0]
    if alb["Type"] != "application" or alb["State"]["Code"] != "active":
        raise Refused(f"{arguments.to} is of the type {alb['Type']}, and {alb['State']['Code']}:"
                      " it must be an application load balancer, and active")
    has_ipv6 = alb.get("IpAddressType", "ipv4") != "ipv4"
    if any(one["Type"] == "AAAA" for one in current) and not (has_ipv6 or arguments.ipv4_only):
        raise Refused(f"the name has an AAAA, and {arguments.to} has no IPv6 address: make it"
                      " dualstack, or give --ipv4-only if no client needs IPv6")
    return alb["CanonicalHostedZoneId"]
