"""Sends a change batch, and waits until all name servers of Route 53 have it."""

import json
import time

from dns_switch import Refused, Unsure
from dns_switch.record_sets import addresses, describe
from dns_switch.zone import AwsError, aws, listed, ours

POLL_SECONDS = 2


def send(batch, wanted, before, arguments):
    """Sends the batch, waits, and looks whether the zone still holds it."""
    try:
        change = change_zone(batch, arguments)
    except AwsError as error:
        change = after_an_error(error, wanted, before, arguments)
    print(f"sent {change}: {', '.join(describe(one) for one in batch['Changes'])}", flush=True)
    wait_until_in_sync(change, arguments)
    try:
        now = ours(listed(arguments), arguments)
    except AwsError as error:
        raise Unsure(f"all name servers have the change, but the zone cannot be read: {error}"
                     ) from None
    # External-dns may have added a TXT of its own meanwhile; after `back` it must not.
    compared = addresses if arguments.command != "back" else list
    if compared(now) != compared(wanted):
        raise Unsure("all name servers had the change, and the zone holds something else by now:"
                     " somebody else writes this name. Run `status`, and find which external-dns"
                     " does")


def change_zone(batch, arguments):
    """Sends a batch, and gives the id of the change."""
    answer = aws("route53", "change-resource-record-sets", "--hosted-zone-id", arguments.zone,
                 "--change-batch", json.dumps(batch))
    return answer["ChangeInfo"]["Id"].rsplit("/", 1)[-1]


def after_an_error(error, wanted, before, arguments):
    """What became of a batch whose call failed: only the answer may be lost.

    The command line then repeats the call, and what the first one deleted is not there any more.
    """
    try:
        now = ours(listed(arguments), arguments)
    except AwsError as second:
        raise Unsure(f"the call failed, and so did the look at the zone afterwards: {error};"
                     f" {second}") from None
    if now == wanted and now != before:
        try:
            return change_zone(repetition(wanted), arguments)
        except AwsError as second:
            raise Unsure(f"the change was made, but cannot be waited for: {second}") from None
    if not error.code:
        raise Unsure(f"the call had no answer, and may still be carried out: {error}") from None
    hint = ""
    if error.code == "InvalidChangeBatch":
        hint = ". Perhaps somebody else changed the zone since it was read: run `status`"
    raise Refused(f"{error}{hint}") from None


def repetition(wanted):
    """A batch that changes nothing, so that there is something to wait for."""
    return {"Comment": "dns-switch again",
            "Changes": [{"Action": "UPSERT", "ResourceRecordSet": one} for one in wanted]}


def wait_until_in_sync(change, arguments):
    """Waits until Route 53 says that all of its name servers have the change."""
    begin, problem = time.monotonic(), ""
    while True:
        try:
            status = aws("route53", "get-change", "--id", change)["ChangeInfo"]["Status"]
        except AwsError as error:
            status, problem = "unknown", f" ({error})"
        waited = int(time.monotonic() - begin)
        if status == "INSYNC":
            print(f"INSYNC after {waited} s")
            return
        if waited >= arguments.wait:
            raise Unsure(f"{change} was made, and is {status} after {waited} s{problem}: run the"
                         " same command again to wait on; `back` goes back at any time")
        time.sleep(POLL_SECONDS)
