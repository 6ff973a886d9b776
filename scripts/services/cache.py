"""The tools cache: what a service needs is installed once, and no run writes anywhere else."""

import fcntl
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import venv

from services import fail

SCRIPTS = pathlib.Path(__file__).resolve().parent.parent
AS_ROOT = os.geteuid() == 0
# What the packages in requirements*.txt ask for. The scripts themselves run on 3.9.
OLDEST_PYTHON = (3, 10)


def folder():
    """The cache. The unprivileged user that PostgreSQL runs as can read it, too."""
    if chosen := os.environ.get("PROJECTOR_TOOLS"):
        return pathlib.Path(chosen)
    if AS_ROOT:
        return pathlib.Path("/var/cache/projector-tools")
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(home) / "projector-tools"


def installed_once(what, identity, fill):
    """The folder of exactly this identity. Fills it if it is new; two runs wait for each other."""
    digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
    cache = folder()
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        installed = cache / digest
        if (installed / "complete").exists():
            return installed
        print(f"installing {what} (once) ...", file=sys.stderr)
        shutil.rmtree(installed, ignore_errors=True)
        fill(installed)
        if AS_ROOT:
            for public in (cache, installed):
                public.chmod(0o755)
        (installed / "complete").touch()
        return installed


def installed_requirements(what, requirements):
    """The virtual environment that holds exactly the packages of a requirements file."""
    identity = f"{requirements.read_text()}{sys.version}"
    return installed_once(
        what, identity, lambda tools: virtual_environment(tools, "--requirement", requirements)
    )


def virtual_environment(tools, *packages):
    """Makes a virtual environment with these packages, and gives pip's command for more."""
    if sys.version_info < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        fail(f"the packages need Python {oldest} or later, and python3 is {sys.version.split()[0]}:"
             " install a later one, and put it first on the PATH as python3")
    venv.create(tools, with_pip=True)
    pip = [tools / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *packages], check=True)
    return pip


def site_packages(tools):
    """Where a virtual environment keeps its packages."""
    return next((tools / "lib").glob("python3*/site-packages"))


def require(what, program, remedy):
    """Fails if a program is not on the PATH."""
    if not shutil.which(program):
        fail(f"{what} needs {program}, which is not on the PATH: {remedy}")
