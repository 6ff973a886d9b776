"""The AWS command line, loaded once for hundreds of commands: it checks the options of each, sends nothing, and answers
what it said. Prints the port that it listens on, and ends with the process that started it.

A request is a line with the number of arguments, and then the arguments, each ended by a zero byte.
"""

import contextlib
import os
import socketserver
import sys

from awscli.clidriver import create_clidriver

driver = create_clidriver()
# What is loaded before the first request, every process that answers one has from the beginning.
for service in ("cloudformation", "cloudwatch", "dynamodb", "ec2", "lambda", "rds", "s3", "s3control"):
    driver.session.create_client(service, region_name="us-east-1")


class Handler(socketserver.StreamRequestHandler):
    # In a process of its own, so that no command leaves anything behind for the next.
    def handle(self):
        count = int(self.rfile.readline())
        arguments = [self.argument() for _ in range(count)]
        for number in (1, 2):
            os.dup2(self.request.fileno(), number)
        # Options are looked at before anything is sent, and nothing listens there.
        os.environ["AWS_MAX_ATTEMPTS"] = "1"
        with contextlib.suppress(SystemExit):
            driver.main([*arguments, "--endpoint-url", "http://127.0.0.1:9"])
        sys.stdout.flush()
        sys.stderr.flush()

    def argument(self):
        read = bytearray()
        while (byte := self.rfile.read(1)) not in (b"\0", b""):
            read += byte
        return read.decode()


class Server(socketserver.ForkingTCPServer):
    allow_reuse_address = True
    timeout = 1


with Server(("127.0.0.1", 0), Handler) as server:
    print(server.server_address[1], flush=True)
    parent = os.getppid()
    while os.getppid() == parent:
        server.handle_request()
