"""What `--keep` leaves running, remembered in the tools cache until `--stop` ends it."""

import contextlib
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import time

from services import cache, fail

# What a shell needs to reach the services.
EXPORTED = (
    "DATABASE_URL", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY",
    "DYNAMODB_LOCAL_URL", "DYNAMODB_LOCAL_CLOCK", "PGBOUNCER_URL", "PGBOUNCER_LENIENT_URL",
    "REGISTRY_FROM", "REGISTRY_TO",
)


def file():
    """Where they are remembered."""
    return cache.folder() / "kept.json"


def refuse_second():
    """Fails if services are running already."""
    if file().exists():
        fail("services are running already: stop them with `scripts/with-services --stop`")


def remember(processes, environment):
    """Writes down what runs, and says how to reach and stop it."""
    file().write_text(json.dumps({
        "folder": str(processes.folder),
        "processes": [(process.pid, int(number)) for process, number in processes.children],
    }))
    print("\nstill running; in your shell:")
    for name in EXPORTED:
        if name in environment:
            print(f"  export {name}='{environment[name]}'")
    print("stop them with: make demo-stop")


def stop():
    """Ends what is remembered."""
    try:
        kept = json.loads(file().read_text())
    except FileNotFoundError:
        fail("nothing is left running")
    running = [(pid, number) for pid, number in kept["processes"] if is_ours(pid, kept["folder"])]
    for pid, end_signal in running:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, end_signal)
    for pid, _ in running:
        wait_for_end(pid)
    shutil.rmtree(kept["folder"], ignore_errors=True)
    file().unlink()
    print("stopped", file=sys.stderr)


def is_ours(pid, folder):
    """Whether this process is one that we started: its number may be another program's by now."""
    command = command_line(pid)
    return folder in command or "ministack" in command


def command_line(pid):
    """The command line of a process; nothing if there is no such process."""
    if platform.system() == "Linux":
        try:
            return pathlib.Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
        except OSError:
            return ""
    return subprocess.run(["ps", "-ww", "-o", "command=", "-p", str(pid)],
                          stdout=subprocess.PIPE, text=True).stdout


def wait_for_end(pid):
    """Waits until a process has ended, ten seconds at most."""
    with contextlib.suppress(ProcessLookupError):
        for _ in range(200):
            os.kill(pid, 0)
            time.sleep(0.05)
