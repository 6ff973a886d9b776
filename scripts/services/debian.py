"""Programs from the distribution's packages, unpacked into the tools cache. Needs no root."""

import os
import pathlib
import re
import shutil
import subprocess

from services import fail
from services.cache import installed_once


def installed_packages(what, packages, check):
    """The folder of these packages and their libraries. `check` fails if they do not run."""
    if not shutil.which("apt-get"):
        fail(f"{what} comes from a package that needs Linux with apt:"
             " run this in a Debian container")

    def fill(folder):
        unpack(packages, folder)
        check(folder)

    release = pathlib.Path("/etc/os-release").read_text()
    return installed_once(what, f"{' '.join(packages)}{release}", fill)


def unpack(packages, folder):
    """Uses apt with lists and a cache of its own, and dpkg-deb: neither needs root."""
    apt = folder / "apt"
    (apt / "lists/partial").mkdir(parents=True)
    options = ["-qq", "-o", f"Dir::State={apt}", "-o", f"Dir::Cache={apt}",
               "-o", "APT::Sandbox::User=root"]
    # This fails for any source that is away. If that is the packages' own, the next step fails.
    subprocess.run(["apt-get", *options, "update"], stdout=subprocess.DEVNULL)
    wanted, look_at = set(packages), list(packages)
    while look_at:
        listed = subprocess.run(
            ["apt-cache", *options, "depends", "--important", look_at.pop()],
            check=True, stdout=subprocess.PIPE, text=True,
        )
        # The C library stays the machine's: the loader belongs to it.
        libraries = set(re.findall(r"Depends: (lib(?!c6\b)\S+)", listed.stdout)) - wanted
        wanted |= libraries
        look_at += libraries
    subprocess.run(["apt-get", *options, "download", *sorted(wanted)],
                   cwd=apt, check=True, stdout=subprocess.DEVNULL)
    for package in apt.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, folder], check=True)
    shutil.rmtree(apt)


def loader_environment(installed):
    """How the loader finds the libraries that were unpacked with it."""
    folders = sorted({str(library.parent) for library in installed.rglob("lib*.so.*")})
    return {**os.environ, "LD_LIBRARY_PATH": ":".join(folders)}
