"""What `scripts/with-services` starts: one module per service, and what they share.

`cache` installs the tools once, `processes` starts and stops programs, `loopback` proves that no
other machine reaches them, `kept` remembers what `--keep` left running. Each other module is one
service: its `install` gives the folder of its tools, and its `start` gives the variables that the
command finds in its environment.
"""

import sys


def fail(message):
    """Ends with one line that names the fault and the remedy."""
    sys.exit(f"with-services: {message}")
