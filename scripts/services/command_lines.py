"""The command lines of `--with-sam` and `--tools-only`: sam, aws, cfn-lint, and the linters."""

from services import cache

SAM_REQUIREMENTS = cache.SCRIPTS / "requirements-sam.txt"
LINT_REQUIREMENTS = cache.SCRIPTS / "requirements-lint.txt"


def install_sam():
    """sam, aws and cfn-lint, in one virtual environment."""
    return cache.installed_requirements("the SAM and AWS command lines and cfn-lint",
                                        SAM_REQUIREMENTS)


def install_linters():
    """ruff and shellcheck, in one virtual environment."""
    return cache.installed_requirements("the linters of scripts", LINT_REQUIREMENTS)


def sam_environment():
    """What keeps sam out of the user's home."""
    folder = cache.folder() / "sam"
    folder.mkdir(exist_ok=True)
    return {"SAM_CLI_TELEMETRY": "0", "__SAM_CLI_APP_DIR": str(folder)}
