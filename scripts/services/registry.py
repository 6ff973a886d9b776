"""Two registries of container images, and skopeo, from the distribution's packages."""

import signal
import subprocess

from services.debian import installed_packages, loader_environment
from services.processes import answers, free_port

# Each registry: its name, and its variable.
REGISTRIES = (("registry-from", "REGISTRY_FROM"), ("registry-to", "REGISTRY_TO"))


def install():
    """Unpacks both packages; skopeo is then in the folder `bin`."""
    return installed_packages("The registry with skopeo", ("docker-registry", "skopeo"), wrap)


def wrap(folder):
    """Puts a skopeo into `bin` that finds the libraries unpacked with it. Fails if none runs."""
    libraries = loader_environment(folder)["LD_LIBRARY_PATH"]
    wrapper = folder / "bin/skopeo"
    wrapper.parent.mkdir(exist_ok=True)
    wrapper.write_text(
        f'#!/bin/sh\nLD_LIBRARY_PATH="{libraries}" exec "{folder}/usr/bin/skopeo" "$@"\n')
    wrapper.chmod(0o755)
    for program in (wrapper, folder / "usr/bin/docker-registry"):
        subprocess.run([program, "--version"], check=True, stdout=subprocess.DEVNULL)


def start(processes, installed):
    """Starts both registries, empty, and gives their variables: `host:port`, without TLS."""
    environment = {}
    for name, variable in REGISTRIES:
        address = f"127.0.0.1:{free_port()}"
        config = processes.folder / f"{name}.yml"
        config.write_text(
            f"version: 0.1\nlog: {{level: warn}}\nhttp: {{addr: '{address}'}}\n"
            f"storage: {{filesystem: {{rootdirectory: '{processes.folder / name}'}}}}\n")
        process = processes.start(
            name, [installed / "usr/bin/docker-registry", "serve", config], signal.SIGTERM, cwd="/")
        processes.wait_for(name, process, lambda url=f"http://{address}/v2/": answers(url))
        environment[variable] = address
    return environment
