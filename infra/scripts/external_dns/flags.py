"""The flags of external-dns: a container's args -> settings, or why they cannot be judged. Pure."""

import re
from dataclasses import dataclass, field

from external_dns.plan import NEWEST, OLDEST
from external_dns.values import Refusal

# Flags with a value that decide what happens to the name, and the version that first has each.
DECIDING = {
    "source": OLDEST, "provider": OLDEST, "policy": OLDEST, "registry": OLDEST,
    "txt-owner-id": OLDEST, "txt-prefix": OLDEST, "txt-suffix": OLDEST, "domain-filter": OLDEST,
    "exclude-domains": OLDEST, "zone-id-filter": OLDEST, "aws-zone-type": OLDEST,
    "managed-record-types": OLDEST, "exclude-record-types": (0, 14), "namespace": OLDEST,
    "annotation-filter": OLDEST, "label-filter": OLDEST, "ingress-class": (0, 13),
    "annotation-prefix": (0, 20), "interval": OLDEST, "aws-assume-role": OLDEST,
}
DECIDING_SWITCHES = {
    "dry-run": OLDEST, "ignore-hostname-annotation": OLDEST, "ignore-ingress-tls-spec": OLDEST,
    "ignore-ingress-rules-spec": (0, 9), "aws-zone-match-parent": (0, 14),
    "txt-new-format-only": (0, 16),
}
# Flags that change no alias record of a name: how often and how fast, and what is logged.
HARMLESS = {
    "log-level", "log-format", "metrics-address", "min-event-sync-interval", "txt-cache-interval",
    "provider-cache-time", "aws-batch-change-size", "aws-batch-change-size-bytes",
    "aws-batch-change-size-values", "aws-batch-change-interval", "aws-api-retries",
    "aws-zones-cache-duration", "aws-assume-role-external-id", "request-timeout",
    "kube-api-request-timeout", "kube-api-qps", "kube-api-burst", "min-ttl", "events-emit",
    "service-type-filter", "txt-wildcard-replacement",
}
HARMLESS_SWITCHES = {
    "events", "aws-evaluate-target-health", "publish-internal-services", "publish-host-ip",
    "always-publish-not-ready-addresses", "exclude-unschedulable", "expose-internal-ipv6",
    "listen-endpoint-events", "resolve-service-load-balancer-hostname",
}
# Flags that may be given more than once. external-dns stops at any other that is given twice.
REPEATED = {
    "source", "domain-filter", "exclude-domains", "zone-id-filter", "managed-record-types",
    "exclude-record-types", "ingress-class",
}
VERSION = re.compile(r"v?(\d+)\.(\d+)\.(\d+)(?:[-+].*)?")


@dataclass
class Settings:
    """The flags of one external-dns, and at which place of args each is."""

    version: tuple = None
    values: dict = field(default_factory=dict)
    places: dict = field(default_factory=dict)

    def one(self, name, default=""):
        """The value of a flag that is given once at most."""
        return self.values.get(name, [default])[-1]

    def all(self, name, default=()):
        """The values of a flag that may be given several times."""
        return [value for value in self.values.get(name, default) if value]

    def on(self, name):
        """Whether a switch is on."""
        return self.values.get(name) == [True]


def version_of(image):
    """The version that an image's tag names, as (major, minor); None if it names none."""
    name = image.split("@")[0].rpartition("/")[2]
    found = VERSION.fullmatch(name.partition(":")[2])
    return (int(found[1]), int(found[2])) if found else None


def read(side, version, arguments):
    """Settings, and the refusals of what is not understood. `side` names it for people."""
    settings, refusals = Settings(version), []
    remaining = list(enumerate(arguments))
    while remaining:
        place, argument = remaining.pop(0)
        name, given, value = argument[2:].partition("=")
        on = not name.startswith("no-")
        switch = name if on else name[3:]
        if not argument.startswith("--") or "$(" in argument:
            refusals.append(unknown(side, argument))
        elif switch in DECIDING_SWITCHES or switch in HARMLESS_SWITCHES:
            if given:
                refusals.append(unknown(side, argument))
            keep(side, settings, refusals, switch, on, place)
        elif name in DECIDING or name in HARMLESS:
            if not given and remaining:
                value = remaining.pop(0)[1]
            keep(side, settings, refusals, name, value, place)
        else:
            refusals.append(unknown(side, argument.partition("=")[0]))
    return settings, refusals + missing(side, settings)


def keep(side, settings, refusals, name, value, place):
    """Adds one flag to the settings, unless external-dns would not start with it."""
    since = DECIDING.get(name) or DECIDING_SWITCHES.get(name) or OLDEST
    gone = name == "txt-new-format-only" and settings.version >= (0, 18)
    if settings.version < since or gone:
        refusals.append(Refusal(
            "flag-of-another-version",
            f"{side}: v{settings.version[0]}.{settings.version[1]} has no --{name}, and does not"
            " start with it",
            f"take --{name} out of its args, or run a version that has it"))
    if name in settings.values and name not in REPEATED:
        refusals.append(Refusal(
            "flag-twice", f"{side}: --{name} is given twice, and external-dns stops at that",
            f"leave one --{name} in its args"))
    settings.values.setdefault(name, []).append(value)
    settings.places.setdefault(name, place)


def unknown(side, argument):
    """The refusal of a flag of which we do not know what it does to the name."""
    return Refusal(
        "unknown-flag", f"{side}: what {argument} does to the record is not known here",
        "move it away, or find out what it does and add it to infra/scripts/external_dns/flags.py")


def missing(side, settings):
    """What else keeps the settings from being judged."""
    found = []
    expected = {"provider": ("aws", ""), "registry": ("txt", "txt")}
    for name, (value, default) in expected.items():
        if settings.one(name, default) != value:
            found.append(Refusal(
                f"unknown-{name}", f"{side}: --{name} is {settings.one(name, default) or 'not set'}"
                f", and only the rules of {value} are known here",
                f"judge this side by hand, or run it with --{name}={value}"))
    policies = ("sync", "upsert-only", "create-only")
    # It has no default any more.
    default = "sync" if settings.version < NEWEST else ""
    if settings.one("policy", default) not in policies:
        found.append(Refusal(
            "unknown-policy", f"{side}: --policy is {settings.one('policy') or 'not set'}",
            "give it one of sync, upsert-only and create-only"))
    if settings.one("txt-prefix") and settings.one("txt-suffix"):
        found.append(Refusal(
            "flag-twice", f"{side}: --txt-prefix and --txt-suffix exclude each other",
            "leave the one that the TXT records in the zone have"))
    return found


def matches(filters, name, empty=True):
    """Whether a name is one of the domains, or below one. As external-dns: `.x` is only below."""
    name = name.rstrip(".").lower()
    filters = [found.strip().rstrip(".").lower() for found in filters]
    filters = [found for found in filters if found]
    if not filters:
        return empty
    return any(
        name.endswith(found) if found.startswith(".")
        else name == found or name.endswith("." + found)
        for found in filters)


def sees_host(settings, host):
    """Whether the domain filters let a side see the name."""
    included = matches(settings.all("domain-filter"), host)
    return included and not matches(settings.all("exclude-domains"), host, empty=False)


def sees_zone(settings, zone_id, zone_name, private):
    """Whether the zone filters let a side see the zone."""
    ids = settings.all("zone-id-filter")
    kind = settings.one("aws-zone-type")
    if ids and not any(zone_id.endswith(found) for found in ids):
        return False
    if kind and kind != ("private" if private else "public"):
        return False
    if sees_host(settings, zone_name):
        return True
    parents = [found.rstrip(".").lower() for found in settings.all("domain-filter")
               if not found.startswith(".")]
    return settings.on("aws-zone-match-parent") and any(
        found.endswith("." + zone_name.rstrip(".").lower()) for found in parents)


def annotation_prefix(settings):
    """Where this side looks for annotations."""
    newest = settings.version >= NEWEST
    default = "external-dns.kubernetes.io/" if newest else "external-dns.alpha.kubernetes.io/"
    return settings.one("annotation-prefix", default)


def types(settings):
    """The kinds of record that this side manages."""
    # Before v0.14 the default had no AAAA; an alias counts as CNAME there.
    default = ("A", "AAAA", "CNAME") if settings.version >= (0, 14) else ("A", "CNAME")
    managed = frozenset(settings.all("managed-record-types", default))
    return managed - frozenset(settings.all("exclude-record-types"))
