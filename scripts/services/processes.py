"""The processes of one run: started with a log each, and ended by their process ids."""

import ctypes
import os
import pathlib
import platform
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

from services import fail
from services.cache import AS_ROOT

PR_SET_PDEATHSIG = 1
START_SECONDS = 60
STOP_SECONDS = 20


class Processes:
    """The services of one run, and the folder with their data and logs."""

    def __init__(self, keep):
        """With `keep` they outlive this script."""
        self.keep = keep
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="projector-"))
        self.folder.chmod(0o711)
        self.children = []  # (process, the signal that ends it)

    def start(self, name, command, end_signal, **options):
        """Starts a program in a session of its own, so that Ctrl-C reaches only the command."""
        with open(self.log_file(name), "wb") as log:
            process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                preexec_fn=None if self.keep else dying_with_parent(end_signal), **options,
            )
        self.children.append((process, end_signal))
        return process

    def log_file(self, name):
        """Where a program writes its output."""
        return self.folder / f"{name}.log"

    def log(self, name):
        """What a program has written."""
        return self.log_file(name).read_text(errors="replace")

    def wait_for(self, name, process, ready):
        """Waits until it is ready, and fails with the end of its log if it never is."""
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                fail(f"{name} did not start:\n{self.log(name)[-2000:]}")
            time.sleep(0.05)

    def wait_for_log(self, name, process, words):
        """Waits until a program's log has these words."""
        self.wait_for(name, process, lambda: words in self.log(name))

    def stop(self):
        """Ends all of them, and removes their folder."""
        for process, end_signal in reversed(self.children):
            if process.poll() is None:
                process.send_signal(end_signal)
        for process, _ in self.children:
            try:
                process.wait(timeout=STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def dying_with_parent(death_signal):
    """On Linux a child gets this signal if we are killed in a way that runs no handler."""
    if platform.system() != "Linux":
        return None
    libc = ctypes.CDLL(None)
    return lambda: libc.prctl(PR_SET_PDEATHSIG, death_signal)


def unprivileged(*paths):
    """How to start a program that refuses to run as root. That user then owns these paths."""
    if not AS_ROOT:
        return {}
    nobody = pwd.getpwnam("nobody")
    for path in paths:
        os.chown(path, nobody.pw_uid, nobody.pw_gid)
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def free_port():
    """A port of loopback that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def answers(endpoint):
    """Whether a server answers there, with whatever status."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(endpoint, timeout=1).close()
        return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
