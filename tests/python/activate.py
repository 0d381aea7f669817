"""Starts a program as a service manager would: with sockets that are open already.

    activate.py [--pid N] [--count N] [--names A:B] [NAME=KIND:PLACE…] -- COMMAND…

KIND is `unix`, `tcp`, `transparent`, `udp`, `connection`, `file` or `none`, an open place without a
descriptor. A mode may follow the place of `unix` after a comma. What the options say replaces what
would be right.
"""

import os
import socket
import sys


def opened(kind: str, place: str) -> int | None:
    """A descriptor that stays open, or none."""
    if kind == "none":
        return None
    if kind == "file":
        return os.open(place, os.O_RDONLY)
    if kind == "unix":
        path, _, mode = place.partition(",")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        made.bind(path)
        os.chmod(path, int(mode or "777", 8))
        made.listen(128)
        return made.detach()
    host, _, port = place.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    type_ = socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM
    made = socket.socket(family, type_)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if kind == "transparent":
        made.setsockopt(socket.SOL_IP, 19, 1)
    made.bind((host, int(port)))
    if kind in ("tcp", "transparent"):
        made.listen(128)
    return made.detach()


def main() -> None:
    options, given = {}, []
    words = iter(sys.argv[1:])
    for word in words:
        if word == "--":
            break
        if word.startswith("--"):
            options[word] = next(words)
        else:
            name, _, rest = word.partition("=")
            kind, _, place = rest.partition(":")
            given.append((name, kind, place))
    command = list(words)
    descriptors = [opened(kind, place) for _, kind, place in given]
    # Out of the way first: one of them may have the number that another is to get.
    high = [fd if fd is None else os.dup2(fd, 100 + index) for index, fd in enumerate(descriptors)]
    for index in range(len(given)):
        try:
            os.close(3 + index)
        except OSError:
            pass
    for index, fd in enumerate(high):
        if fd is not None:
            os.dup2(fd, 3 + index, inheritable=True)
            os.set_inheritable(fd, False)
    os.environ["LISTEN_PID"] = options.get("--pid", str(os.getpid()))
    os.environ["LISTEN_FDS"] = options.get("--count", str(len(given)))
    os.environ["LISTEN_FDNAMES"] = options.get("--names", ":".join(name for name, _, _ in given))
    # Whoever waits for the sockets knows that they are there.
    print("activated", flush=True)
    os.execv(command[0], command)


main()
