"""PgBouncer in transaction mode, from the distribution's package."""

import re
import signal
import subprocess

from services.debian import installed_packages, loader_environment
from services.postgres import USER
from services.processes import free_port, unprivileged

# Each PgBouncer: its name, its variable, and the startup parameters that it ignores.
POOLERS = (
    ("pgbouncer", "PGBOUNCER_URL", ""),
    ("pgbouncer-lenient", "PGBOUNCER_LENIENT_URL", "extra_float_digits,options"),
)


def install():
    """Unpacks the package and its libraries into the cache. Needs no root."""
    return installed_packages("PgBouncer", ("pgbouncer",), version)


def version(installed):
    """PgBouncer's major and minor number. Fails if it does not run."""
    printed = subprocess.run(
        [installed / "usr/sbin/pgbouncer", "--version"], env=loader_environment(installed),
        check=True, stdout=subprocess.PIPE, text=True,
    ).stdout
    return tuple(int(number) for number in re.match(r"PgBouncer (\d+)\.(\d+)", printed).groups())


def start(processes, installed, server):
    """Starts both in front of a PostgreSQL server, and gives their variables."""
    numbers = version(installed)
    # The signal that does not wait for clients; 1.23 gave SIGTERM another meaning.
    end_signal = signal.SIGTERM if numbers < (1, 23) else signal.SIGQUIT
    users = processes.folder / "pgbouncer-users"
    users.touch(mode=0o600)
    users.write_text(f'"{USER}" "{server.password}"\n')
    environment = {}
    for name, variable, ignored in POOLERS:
        port = free_port()
        config = processes.folder / f"{name}.ini"
        config.write_text(configuration(server.port, settings(port, users, ignored, numbers)))
        process = processes.start(
            name, [installed / "usr/sbin/pgbouncer", config], end_signal, cwd="/",
            env=loader_environment(installed), **unprivileged(users, config),
        )
        processes.wait_for_log(name, process, "process up")
        environment[variable] = server.environment["DATABASE_URL"].replace(
            f"@127.0.0.1:{server.port}/", f"@127.0.0.1:{port}/")
    return environment


def settings(port, users, ignored, numbers):
    """The settings of one PgBouncer."""
    found = {
        "listen_addr": "127.0.0.1", "listen_port": port, "unix_socket_dir": "",
        # Few enough that clients share server connections.
        "pool_mode": "transaction", "default_pool_size": 2, "max_client_conn": 200,
        # It looks up the other roles in PostgreSQL, as this one.
        "auth_type": "scram-sha-256", "auth_file": users, "auth_user": USER,
    }
    if ignored:
        found["ignore_startup_parameters"] = ignored
    # Before 1.21 it never kept prepared statements, and refuses to start with this.
    if numbers >= (1, 21):
        found["max_prepared_statements"] = 0
    return found


def configuration(postgres_port, found):
    """PgBouncer's configuration file, for every database of the server."""
    lines = ["[databases]", f"* = host=127.0.0.1 port={postgres_port}", "[pgbouncer]"]
    return "\n".join([*lines, *(f"{name} = {value}" for name, value in found.items()), ""])
