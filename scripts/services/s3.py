"""The stand-in of AWS (ministack): S3 with conditional writes, and more with `--with-sam`."""

import os
import signal

from services.processes import answers, free_port

CREDENTIALS = {
    "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_EC2_METADATA_DISABLED": "true", "AWS_PAGER": "", "NO_PROXY": "127.0.0.1",
}


def start(processes, tools):
    """Starts it, waits until it answers, and gives the variables that lead there."""
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    environment = {
        **os.environ, "BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port),
        # Its MQTT listener knows no BIND_HOST, and takes every address.
        "IOT_MTLS_ENABLED": "0",
        "S3_PERSIST": "0", "LOG_LEVEL": "WARNING",
        "HOME": str(processes.folder), "TMPDIR": str(processes.folder),
        # For the functions that it runs.
        "AWS_ENDPOINT_URL": endpoint, "AWS_EC2_METADATA_DISABLED": "true", "NO_PROXY": "127.0.0.1",
    }
    process = processes.start("s3", [tools / "bin/python", "-m", "ministack"], signal.SIGTERM,
                              env=environment, cwd=processes.folder)
    processes.wait_for("s3", process, lambda: answers(endpoint))
    return {"AWS_ENDPOINT_URL": endpoint, **CREDENTIALS}
