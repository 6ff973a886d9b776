"""The file of what was before: written once, whole, and never over another."""

import datetime
import json
import os
import tempfile

from dns_switch import Refused
from dns_switch.steps import FORMAT

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
    if not isinstance(saved, dict) or set(saved) != MEMBERS or saved["format"] != FORMAT:
        raise Refused(f"{arguments.saved} is no file of dns-switch, or of another release")
    for name in ("zone", "name"):
        if saved[name] != getattr(arguments, name):
            raise Refused(f"{arguments.saved} was saved for the {name} {saved[name]}, not for"
                          f" {getattr(arguments, name)}: give the file of this one")
    return saved


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
