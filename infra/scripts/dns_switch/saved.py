"""The file of what was before: written once, whole, and never over another.

What `dns-check --save` kept is read as well: it is the listing of the whole zone.
"""

import datetime
import json
import os
import tempfile

from dns_switch import Refused
from dns_switch.record_sets import addresses, target
from dns_switch.steps import FORMAT
from dns_switch.zone import ours

MEMBERS = {"format", "zone", "name", "to", "saved_at", "record_sets"}


def load(arguments):
    """What was saved for this zone and name; None if there is no file."""
    try:
        with open(arguments.saved, encoding="utf-8") as file:
            saved = json.load(file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise Refused(f"{arguments.saved} cannot be read: {error}") from None
    if isinstance(saved, dict) and "ResourceRecordSets" in saved:
        return of_listing(saved["ResourceRecordSets"], arguments)
    if not isinstance(saved, dict) or set(saved) != MEMBERS or saved["format"] != FORMAT:
        raise Refused(f"{arguments.saved} is no file of dns-switch, or of another release")
    for name in ("zone", "name"):
        if saved[name] != getattr(arguments, name):
            raise Refused(f"{arguments.saved} was saved for the {name} {saved[name]}, not for"
                          f" {getattr(arguments, name)}: give the file of this one")
    return saved


def of_listing(every, arguments):
    """What a listing of the zone holds of the name, as if a step had saved it."""
    if arguments.command != "back":
        raise Refused(f"{arguments.saved} is what dns-check kept: `back` alone takes it, give"
                      " another --saved")
    kept = ours(every, arguments)
    if not any(one["Type"] == "A" for one in kept):
        raise Refused(f"{arguments.saved} has no A of {arguments.name}: it is of another zone, or"
                      " was kept when the record was gone already")
    for one in addresses(kept):
        target(one)
    if not arguments.without_txt and not any(one["Type"] == "TXT" for one in kept):
        raise Refused(f"{arguments.saved} has no TXT of external-dns for {arguments.name}: give"
                      " --txt-prefix or --txt-suffix as its Deployment has them, or --without-txt")
    return {"record_sets": kept, "to": None}


def save(saved, arguments):
    """Writes the file if there is none yet: whole, on the disk, and never over another."""
    if os.path.exists(arguments.saved):
        return
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    folder = os.path.dirname(os.path.abspath(arguments.saved))
    try:
        with tempfile.NamedTemporaryFile("w", dir=folder, prefix=".dns-switch-") as file:
            json.dump({**saved, "saved_at": now}, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
            # Unlike a rename, a link fails if the name is taken.
            os.link(file.name, arguments.saved)
        directory = os.open(folder, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
    except OSError as error:
        raise Refused(f"cannot save to {arguments.saved}: {error}") from None
    print(f"saved {len(saved['record_sets'])} record sets to {os.path.abspath(arguments.saved)}")
