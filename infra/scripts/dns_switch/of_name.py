"""For infra/scripts/service-functions: a name's record sets as lines, and the AAAA of one side.

usage: of_name.py list NAME TXT_PREFIX TXT_SUFFIX <LISTING
       of_name.py aaaa NAME TXT_PREFIX TXT_SUFFIX ALB BEFORE <LISTING

LISTING is what `aws route53 list-resource-record-sets` prints. `list` prints one record set per
line. `aaaa` prints the change batch that removes the AAAA record that leads to ALB, with its TXT,
and nothing if there is none. It refuses if BEFORE, a listing of before the switch, has an AAAA.
"""

import argparse
import json
import pathlib
import sys

# The folder of an operator's checkout stays as it is.
sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from dns_switch.zone import ours, txt_names  # noqa: E402  (after the line above)


def main():
    """Prints what the first argument asks for."""
    what, name, prefix, suffix, *more = sys.argv[1:]
    name = argparse.Namespace(
        name=f"{name.rstrip('.').lower()}.", txt_prefix=prefix, txt_suffix=suffix)
    every = json.load(sys.stdin)["ResourceRecordSets"]
    print({"list": lines, "aaaa": aaaa_batch}[what](every, name, *more), end="")


def lines(every, name):
    """The A, AAAA and CNAME of the name, and the TXT by which external-dns says who owns them."""
    sets = ours(every, name)
    sets += [one for one in every if one["Name"] == name.name and one["Type"] == "CNAME"]
    if not any(one["Type"] == "TXT" for one in sets):
        print("record_sets: external-dns has no TXT for this name: if its flags have --txt-prefix"
              " or --txt-suffix, set TXT_PREFIX or TXT_SUFFIX", file=sys.stderr)
    return "".join(f"{one['Name'].rstrip('.')} {one['Type']}{weight(one)} {value(one)}\n"
                   for one in sets)


def aaaa_batch(every, name, balancer, before):
    """The batch that removes the AAAA record of one load balancer with its TXT, or nothing."""
    before = pathlib.Path(before)
    kept = json.loads(before.read_text())["ResourceRecordSets"] if before.exists() else []
    if any(one["Type"] == "AAAA" for one in ours(kept, name)):
        sys.exit(f"remove_aaaa: {before} has an AAAA record: removing it is no way back. Put back"
                 " what was there: docs/service.md, \"The record is gone or wrong\"")
    balancer, texts = balancer.lower(), txt_names(name, ["aaaa"])
    gone = [one for one in ours(every, name) if one["Type"] == "AAAA"
            and value(one) in (balancer, f"dualstack.{balancer}")]
    if not gone:
        return ""
    gone += [one for one in ours(every, name) if one["Type"] == "TXT" and one["Name"] in texts]
    return json.dumps(
        {"Changes": [{"Action": "DELETE", "ResourceRecordSet": one} for one in gone]}, indent=2)


def weight(one):
    """The weight of a record set, if it has one."""
    return f" weight {one['Weight']}" if "Weight" in one else ""


def value(one):
    """Where an alias leads, or the values of another record set."""
    values = " ".join(record["Value"] for record in one.get("ResourceRecords", []))
    return one.get("AliasTarget", {}).get("DNSName", values).rstrip(".").lower()


if __name__ == "__main__":
    main()
