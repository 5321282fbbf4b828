"""Starts the server for rollout.py and preview/draw.py."""

import socket
import subprocess
import sys
import time
import urllib.request


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def wait_for(url, process):
    """Until it answers; ends the program if the process ends."""
    for _ in range(600):
        if process.poll() is not None:
            sys.exit(f"{url}: the program ended with {process.returncode}")
        try:
            return urllib.request.urlopen(url, timeout=2)
        except OSError:
            time.sleep(0.1)
    sys.exit(f"{url} is not ready")


class Server:
    """A server that is ready, on two ports of its own."""

    def __init__(self, binary, model, *flags):
        self.port, self.admin = free_ports(2)
        ports = ["--listen", f"127.0.0.1:{self.port}", "--admin-listen", f"127.0.0.1:{self.admin}"]
        command = [binary, "serve", "--model", model, *ports, "--log", "error", *flags]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            wait_for(f"http://127.0.0.1:{self.admin}/readyz", self.process)
        except BaseException:
            self.process.kill()
            raise
