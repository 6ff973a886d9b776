"""AWS's Lambda Runtime Interface Emulator, which the `aws-sam-cli` wheel carries for Linux."""

import platform

from services import fail
from services.cache import site_packages

MACHINES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "arm64", "arm64": "arm64"}


def variables(tools):
    """The variable that names it: the tests start it themselves."""
    machine = MACHINES.get(platform.machine().lower())
    if not machine:
        fail(f"there is no Lambda emulator for {platform.machine()}:"
             f" use a machine of one of {', '.join(MACHINES)}")
    emulator = site_packages(tools) / f"samcli/local/rapid/aws-lambda-rie-{machine}"
    emulator.chmod(0o755)
    return {"LAMBDA_RIE": str(emulator)}
