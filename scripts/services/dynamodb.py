"""DynamoDB Local with its streams, on loopback and with a clock that a test can put forward.

Both come from `dynamodb-local.c`, which is loaded into its process: so this needs Linux.
"""

import os
import pathlib
import platform
import signal
import subprocess

from services import fail
from services.cache import installed_once, require
from services.processes import answers, free_port

PACKAGE = "amplify-dynamodb-simulator@2.9.30"  # carries DynamoDB Local 1.25.1
PRELOAD = pathlib.Path(__file__).resolve().parent / "dynamodb-local.c"


def install():
    """Downloads DynamoDB Local, and compiles what is loaded into it."""
    if platform.system() != "Linux":
        fail("DynamoDB Local is kept on loopback in a way that only Linux has:"
             " run this in a Linux container")
    require("DynamoDB Local", "java",
            "install a Java runtime of version 17 or later (Debian: openjdk-17-jre-headless)")
    return installed_once("DynamoDB Local", f"{PACKAGE}{PRELOAD.read_text()}", download)


def download(folder):
    """Takes the package as it is; its licence forbids to pass it on or to change it."""
    require("DynamoDB Local", "npm", "install Node.js with npm (Debian: npm)")
    require("DynamoDB Local", "cc", "install a C compiler (Debian: gcc)")
    folder.mkdir()
    packed = subprocess.run(["npm", "pack", "--silent", PACKAGE],
                            cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
    archive = folder / packed.stdout.split()[-1]
    subprocess.run(["tar", "-xzf", archive, "--no-same-owner", "-C", folder, "package/emulator"],
                   check=True)
    archive.unlink()
    subprocess.run(["cc", "-std=c11", "-O2", "-Wall", "-Wextra", "-shared", "-fPIC",
                    "-o", folder / "preload.so", PRELOAD], check=True)


def start(processes, installed):
    """Starts it, and gives its variables and what waits until it answers.

    It takes seconds to start, and the others start meanwhile.
    """
    port, emulator = free_port(), installed / "package/emulator"
    endpoint, clock = f"http://127.0.0.1:{port}", processes.folder / "dynamodb-clock"
    clock.write_bytes(bytes(8))
    variables = {
        "DYNAMODB_LOCAL_URL": endpoint, "DYNAMODB_LOCAL_CLOCK": str(clock),
        "DYNAMODB_LOCAL_PRELOAD": str(installed / "preload.so"),
    }
    environment = {
        **os.environ, "LD_PRELOAD": variables["DYNAMODB_LOCAL_PRELOAD"],
        "DYNAMODB_LOCAL_CLOCK": str(clock), "DDB_LOCAL_TELEMETRY": "0",
        "HOME": str(processes.folder),
    }
    process = processes.start("dynamodb", [
        "java", "-Xmx512m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-XX:-UsePerfData",
        "-Djava.net.preferIPv4Stack=true", f"-Djava.io.tmpdir={processes.folder}",
        f"-Djava.library.path={emulator / 'DynamoDBLocal_lib'}",
        "-jar", emulator / "DynamoDBLocal.jar",
        "-port", port, "-inMemory", "-sharedDb", "-disableTelemetry",
    ], signal.SIGTERM, env=environment, cwd=processes.folder)
    return variables, lambda: processes.wait_for("dynamodb", process, lambda: answers(endpoint))
