"""What kubectl prints -> the sides of a cluster, or why they cannot be judged. Pure."""

import re
from dataclasses import dataclass

from external_dns import flags
from external_dns.plan import NEWEST, OLDEST
from external_dns.values import Claim, Refusal, Side
from external_dns.zone import BALANCER

# What an annotation may say that the rules here know, without the prefix.
KNOWN_ANNOTATIONS = {
    "controller", "hostname", "target", "ttl", "set-identifier", "aws-weight",
    "aws-evaluate-target-health",
}
# The sources whose objects dns-check reads.
READ_SOURCES = {"ingress", "service"}
# external-dns keeps off an object whose annotation says anything else.
OURS = "dns-controller"


def workloads(items):
    """What runs external-dns, each with that container: its pods write whoever starts them."""
    found = []
    for item in items:
        spec = item["spec"].get("jobTemplate", item)["spec"]
        for container in spec["template"]["spec"]["containers"]:
            if is_external_dns(container):
                found.append((item, container))
    return found


def is_external_dns(container):
    """Whether a container runs external-dns, under whatever name: it always needs both flags."""
    image = container.get("image", "").split("@")[0].rpartition("/")[2]
    if container["name"] == "external-dns" or image.split(":")[0] == "external-dns":
        return True
    words = [*container.get("command", []), *container.get("args", [])]
    flags_given = {word.partition("=")[0] for word in words}
    variables = {entry["name"] for entry in container.get("env", [])}
    return {"--provider", "--source"} <= flags_given or any(
        name.startswith("EXTERNAL_DNS_") for name in variables)


@dataclass(frozen=True)
class Question:
    """What is asked: which name in which zone, and what the operator answers for."""

    host: str
    zone_id: str
    zone_name: str
    private: bool = False
    ignored_sources: tuple = ()
    # Ingresses of the new cluster that do not name the host yet, and will.
    coming: tuple = ()


def sides(cluster, found, question):
    """The sides of a cluster, and refusals. `found` is what was read of the cluster."""
    running = workloads(found["deployments"]["items"])
    read, refusals = [], []
    if not running:
        refusals.append(Refusal(
            "no-external-dns", f"the {cluster} side has no Deployment of external-dns",
            "is this the right cluster? Name its container external-dns, if the image has another"
            " name"))
    for item, container in running:
        side, why = side_of(cluster, item, container, found, question)
        refusals += why
        if side:
            read.append(side)
    return read, refusals


def side_of(cluster, item, container, found, question):
    """One external-dns; None if nothing can be said of it."""
    deployment = named(item)
    name = f"the {cluster} side ({deployment})"
    if item["kind"] != "Deployment":
        return None, [Refusal(
            "unknown-workload", f"{name}: a {item['kind']} runs external-dns, and only a Deployment"
            " is judged here", "run it as a Deployment, or delete it")]
    version = flags.version_of(container.get("image", ""))
    if version is None or not OLDEST <= version <= NEWEST:
        return None, [Refusal(
            "unknown-version", f"{name}: the image is {container.get('image')}, and the rules known"
            " here are those of v0.8 to v0.22",
            "run a version between these, by its tag; a digest may follow the tag")]
    before = container.get("command", [])[1:]
    arguments = [*before, *container.get("args", [])]
    settings, refusals = flags.read(name, version, arguments)
    refusals += from_elsewhere(name, container) + rollout(name, item)
    refusals += unread_sources(name, settings, question.ignored_sources)
    refusals += selectors(name, settings)
    if any(refusal.name.startswith("unknown-") for refusal in refusals):
        return None, refusals
    coming = question.coming if cluster == "new" else ()
    claim, kept_off, why = claims(name, settings, found["objects"]["items"], question.host, coming)
    place = settings.places.get("policy", -1) - len(before)
    side = Side(
        cluster=cluster, deployment=deployment, version=version,
        policy=settings.one("policy", "sync"), policy_place=place if place >= 0 else None,
        owner=settings.one("txt-owner-id", "default"), interval=settings.one("interval", "1m"),
        role=settings.one("aws-assume-role") or role(item, found["accounts"]["items"]),
        annotation_prefix=flags.annotation_prefix(settings),
        txt_prefix=settings.one("txt-prefix"), txt_suffix=settings.one("txt-suffix"),
        types=flags.types(settings), new_format_only=settings.on("txt-new-format-only"),
        sees_zone=flags.sees_zone(
            settings, question.zone_id, question.zone_name, question.private),
        sees_host=flags.sees_host(settings, question.host),
        writes=not stopped(item) and not settings.on("dry-run"), claim=claim, kept_off=kept_off)
    return side, refusals + why


def named(item):
    """An object's namespace and name, for people."""
    return f"{item['metadata'].get('namespace', 'default')}/{item['metadata']['name']}"


def stopped(item):
    """Whether a Deployment is scaled to zero and its pods are gone."""
    return item["spec"].get("replicas", 1) == 0 and not item.get("status", {}).get("replicas")


def rollout(name, item):
    """Whether pods with other flags may still run."""
    status, replicas = item.get("status", {}), item["spec"].get("replicas", 1)
    seen = status.get("observedGeneration") == item["metadata"].get("generation")
    counts = [status.get(count, 0) for count in ("replicas", "updatedReplicas", "readyReplicas")]
    if seen and counts == [replicas] * 3:
        return []
    return [Refusal(
        "rollout-unfinished", f"{name}: of {replicas} pods {counts[1]} have the present flags and"
        f" {counts[2]} are ready, of {counts[0]} in all: pods with other flags may still write",
        "wait until `kubectl rollout status` of this Deployment says that it is done")]


def from_elsewhere(name, container):
    """Flags that args do not show: external-dns takes each from a variable, too."""
    found = [entry["name"] for entry in container.get("env", [])
             if entry["name"].startswith("EXTERNAL_DNS_")]
    found += ["envFrom"] if container.get("envFrom") else []
    command = container.get("command", [])
    found += command[:1] if command and not command[0].endswith("external-dns") else []
    return [Refusal("unknown-flag", f"{name}: {entry} may set flags that its args do not show",
                    "move these flags into args") for entry in found]


def unread_sources(name, settings, ignored):
    """Sources that may name the host, and of which nothing was read."""
    unread = set(settings.all("source")) - READ_SOURCES - set(ignored)
    return [Refusal(
        "unread-source", f"{name}: it takes names from {source}, too, which nothing here reads",
        f"see that no {source} of this cluster names the host, then add --ignore-source {source}")
        for source in sorted(unread)]


def role(item, accounts):
    """The role of the Deployment's service account; empty if it has none."""
    pod = item["spec"]["template"]["spec"]
    name = pod.get("serviceAccountName", "default")
    for account in accounts:
        metadata = account["metadata"]
        if (metadata["name"], metadata.get("namespace")) == (name, item["metadata"]["namespace"]):
            return metadata.get("annotations", {}).get("eks.amazonaws.com/role-arn", "")
    return ""


def claims(name, settings, items, host, coming=()):
    """What the cluster asks of this side: the claim, the claim that is kept off, and refusals."""
    open_claims, kept_off, refusals = [], [], []
    prefix = flags.annotation_prefix(settings)
    for item in items:
        annotations = item["metadata"].get("annotations") or {}
        if not reads(settings, item, annotations):
            continue
        if host not in hosts(settings, item, annotations):
            if item["kind"] == "Ingress" and named(item) in coming:
                kept_off.append(claim_of(prefix, item, annotations))
            continue
        if item["kind"] != "Ingress":
            refusals.append(Refusal(
                "another-source", f"{name}: the {item['kind']} {named(item)} names {host}, too",
                f"take {host} out of its annotations: only an Ingress is judged here"))
            continue
        refusals += strange_annotations(name, prefix, item, annotations)
        value = annotations.get(prefix + "controller", OURS)
        (open_claims if value == OURS else kept_off).append(claim_of(prefix, item, annotations))
        if value == OURS:
            refusals += ignored_guard(name, prefix, item, annotations)
    for found in (open_claims, kept_off):
        if len(found) > 1:
            names = ", ".join(claim.ingress for claim in found)
            refusals.append(Refusal(
                "two-ingresses", f"{name}: {names} all name {host}, and one of them wins",
                f"leave {host} in one of them"))
    return next(iter(open_claims), None), next(iter(kept_off), None), refusals


def claim_of(prefix, item, annotations):
    """What one Ingress asks for."""
    balancers = item.get("status", {}).get("loadBalancer", {}).get("ingress") or [{}]
    target = annotations.get(prefix + "target") or balancers[0].get("hostname", "")
    weight = annotations.get(prefix + "aws-weight")
    return Claim(
        ingress=named(item), target=target.rstrip("."),
        set_identifier=annotations.get(prefix + "set-identifier", ""),
        weight=int(weight) if weight and weight.isdigit() else None,
        dualstack=annotations.get("alb.ingress.kubernetes.io/ip-address-type") == "dualstack")


def strange_annotations(name, prefix, item, annotations):
    """Refusals of what an Ingress asks for that the rules here do not know."""
    found = []
    for key, value in sorted(annotations.items()):
        known = key[len(prefix):] in KNOWN_ANNOTATIONS
        if key.startswith(prefix) and not known:
            found.append((f"{key} is not known here", "take it away"))
        if key == prefix + "aws-weight" and not value.isdigit():
            found.append((f"{key} is {value!r}", "give it a whole number"))
    weighted = prefix + "aws-weight" in annotations
    if weighted != (prefix + "set-identifier" in annotations):
        found.append(("it has one of set-identifier and aws-weight", "give it both or neither"))
    addresses = item.get("status", {}).get("loadBalancer", {}).get("ingress") or []
    if len(addresses) > 1 or any("ip" in address for address in addresses):
        found.append(("its status has several addresses, or an IP address",
                      "judge this name by hand"))
    target = claim_of(prefix, item, annotations).target
    if target and not BALANCER.search(target):
        found.append((f"{target} is no load balancer of AWS", "judge this name by hand"))
    return [Refusal("unknown-annotation", f"{name}: Ingress {named(item)}: {what}", remedy)
            for what, remedy in found]


def ignored_guard(name, prefix, item, annotations):
    """The refusal of an annotation that should keep this side off, and that it does not read."""
    for key, value in sorted(annotations.items()):
        if re.fullmatch(r"[^/]*external-dns[^/]*/controller", key) and value != OURS:
            return [Refusal(
                "guard-ignored", f"{name}: Ingress {named(item)} has {key}, and this side reads"
                f" {prefix}controller alone",
                f"annotate it with {prefix}controller, or set --annotation-prefix"
                f"={key.partition('/')[0]}/ (v0.20 or later)")]
    return []


def hosts(settings, item, annotations):
    """The names that an object asks for."""
    prefix = flags.annotation_prefix(settings)
    found = []
    if item["kind"] == "Ingress":
        spec = item.get("spec", {})
        if not settings.on("ignore-ingress-rules-spec"):
            found += [rule.get("host", "") for rule in spec.get("rules") or []]
        if not settings.on("ignore-ingress-tls-spec"):
            for block in spec.get("tls") or []:
                found += block.get("hosts") or []
    if not settings.on("ignore-hostname-annotation"):
        for key in ("hostname", "internal-hostname"):
            found += annotations.get(prefix + key, "").replace(" ", "").split(",")
    return {host.rstrip(".").lower() for host in found}


def reads(settings, item, annotations):
    """Whether the filters of a side let it read an object."""
    metadata = item["metadata"]
    if item["kind"].lower() not in settings.all("source"):
        return False
    if settings.one("namespace") not in ("", metadata.get("namespace")):
        return False
    classes = settings.all("ingress-class")
    own = item.get("spec", {}).get("ingressClassName") or annotations.get(
        "kubernetes.io/ingress.class")
    if item["kind"] == "Ingress" and classes and own not in classes:
        return False
    return selects(settings.one("annotation-filter"), annotations) and selects(
        settings.one("label-filter"), metadata.get("labels") or {})


# The parts of a selector of Kubernetes, of which a comma separates them.
PARTS = re.compile(r",(?![^(]*\))")
LISTED = re.compile(r"(\S+)\s+(in|notin)\s+\(([^)]*)\)")
EQUAL = re.compile(r"([^\s=!]+)\s*(==?|!=)\s*([^\s=]*)")
EXISTS = re.compile(r"(!?)([^\s=!()]+)")


def selectors(name, settings):
    """Refusals of selectors that are not understood."""
    found = []
    for flag in ("annotation-filter", "label-filter"):
        for part in PARTS.split(settings.one(flag)):
            if part and not any(form.fullmatch(part.strip()) for form in (LISTED, EQUAL, EXISTS)):
                found.append(flags.unknown(name, f"--{flag}={settings.one(flag)}"))
    return found


def selects(selector, labels):
    """Whether a selector selects labels."""
    for part in filter(None, map(str.strip, PARTS.split(selector))):
        listed, equal, exists = (form.fullmatch(part) for form in (LISTED, EQUAL, EXISTS))
        if listed:
            values = [value.strip() for value in listed[3].split(",")]
            if (labels.get(listed[1]) in values) != (listed[2] == "in"):
                return False
        elif equal:
            if (labels.get(equal[1]) == equal[3]) != (equal[2] != "!="):
                return False
        elif exists and (exists[2] in labels) == bool(exists[1]):
            return False
    return True
