"""What the handlers of `tests/peers/` need. They run where they are, and leave nothing there."""

import shutil
import subprocess
import sys

from services.cache import SCRIPTS, installed_once, require, virtual_environment

PEERS = SCRIPTS.parent / "tests/peers"


def install():
    """Their Python packages and their Node packages, in one folder."""
    requirements, package = PEERS / "requirements.txt", PEERS / "package.json"

    def fill(tools):
        require("Installing the peers", "npm",
                "install Node.js of version 20 or later with npm (Debian: npm)")
        virtual_environment(tools, "--requirement", requirements)
        shutil.copy(package, tools)
        # The one peer dependency among them, DynamoDB's client, only gives types.
        subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund",
                        "--no-package-lock", "--omit=peer"], cwd=tools, check=True)

    return installed_once("what the peers need",
                          f"{requirements.read_text()}{package.read_text()}{sys.version}", fill)


def variables(installed):
    """The variables by which a benchmark finds them."""
    return {
        "PEERS_PYTHON": str(installed / "bin/python"),
        "NODE_PATH": str(installed / "node_modules"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
