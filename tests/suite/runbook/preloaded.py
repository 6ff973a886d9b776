"""`aws` and `sam`, loaded once for hundreds of commands: each of them takes a second or more to start. Prints the port that
it listens on, and ends with the process that started it.

A request is a line with the number of its words, and then the words, each ended by a zero byte: the folder to be in, `aws` or
`sam`, and the arguments. The answer is what the command printed, and a last line `exit N`.
"""

import logging
import os
import socketserver
import sys

from awscli.clidriver import create_clidriver
from samcli.cli.main import cli as sam
from samcli.commands.deploy import command as _  # sam loads its commands late

# Merely loaded, sam makes every library tell what it does.
logging.getLogger().handlers.clear()
logging.getLogger().setLevel(logging.WARNING)
driver = create_clidriver()
# What is loaded before the first request, every process that answers one has from the beginning.
for service in ("cloudformation", "cloudwatch", "dynamodb", "ec2", "lambda", "rds", "s3", "s3control"):
    driver.session.create_client(service, region_name="us-east-1")


def run(program, arguments):
    try:
        return driver.main(arguments) if program == "aws" else sam.main(arguments, prog_name=program)
    except SystemExit as end:
        return end.code or 0


class Handler(socketserver.StreamRequestHandler):
    # In a process of its own, so that no command leaves anything behind for the next.
    def handle(self):
        folder, program, *arguments = [self.word() for _ in range(int(self.rfile.readline()))]
        os.chdir(folder)
        for number in (1, 2):
            os.dup2(self.request.fileno(), number)
        status = run(program, arguments)
        sys.stdout.flush()
        sys.stderr.flush()
        self.request.sendall(f"\nexit {status}".encode())

    def word(self):
        read = bytearray()
        while (byte := self.rfile.read(1)) not in (b"\0", b""):
            read += byte
        return read.decode()


class Server(socketserver.ForkingTCPServer):
    timeout = 1


with Server(("127.0.0.1", 0), Handler) as server:
    print(server.server_address[1], flush=True)
    parent = os.getppid()
    while os.getppid() == parent:
        server.handle_request()
