"""What `infra/scripts/dns-switch` is made of.

`record_sets` and `steps` are pure: how a record set reads, and what each step makes of those that
are there. `zone` asks AWS, `saved` keeps the file of what was before, `change` sends a batch and
waits for it.
"""


class Refused(Exception):
    """Nothing was changed."""


class Unsure(Exception):
    """Something was sent, or perhaps was, and may or may not hold."""
