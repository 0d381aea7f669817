"""Runs a program on a disk that takes its time: slow_disk.py FOLDER PROGRAM ARGUMENTS…

While FOLDER/held is there, nothing is synced: the calls wait, and FOLDER/waiting tells that one does. The
kernel asks another process, which goes on as long as the program.
"""

import array
import ctypes
import fcntl
import os
import select
import socket
import struct
import sys
import time

LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, NOTIFY = 0x7FFF0000, 0x7FC00000
SECCOMP, SYNCS = {"x86_64": (317, (74, 75)), "aarch64": (277, (82, 83))}[os.uname().machine]
SET_MODE_FILTER, NEW_LISTENER = 1, 8
# struct seccomp_notif and seccomp_notif_resp.
QUESTION, ANSWER = 80, 24
RECEIVE, SEND = 0xC0502100, 0xC0182101
CONTINUE = 1

libc = ctypes.CDLL(None, use_errno=True)


def answer(listener, folder):
    """Answers the kernel until the program has ended."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    while poll.poll()[0][1] & select.POLLIN:
        question = bytearray(QUESTION)
        try:
            fcntl.ioctl(listener, RECEIVE, question)
        except OSError:
            # Whoever called is gone.
            continue
        while os.path.exists(f"{folder}/held"):
            open(f"{folder}/waiting", "w").close()
            time.sleep(0.01)
        (number,) = struct.unpack_from("Q", question)
        try:
            fcntl.ioctl(listener, SEND, bytearray(struct.pack("QqiI", number, 0, 0, CONTINUE)))
        except OSError:
            # Whoever called is gone.
            pass


def main():
    folder, *command = sys.argv[1:]
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        ours.close()
        _, passed, _, _ = theirs.recvmsg(1, socket.CMSG_SPACE(4))
        theirs.close()
        listener = array.array("i", passed[0][2])[0]
        answer(listener, folder)
        os._exit(0)
    theirs.close()
    program = [(LOAD, 0, 0, 0)]
    for call in SYNCS:
        program += [(EQUAL, 0, 1, call), (RETURN, 0, 0, NOTIFY)]
    program.append((RETURN, 0, 0, ALLOW))
    code = b"".join(struct.pack("HBBI", *line) for line in program)
    code = ctypes.create_string_buffer(code, len(code))
    filter_ = struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code))
    libc.prctl(38, 1, 0, 0, 0)
    listener = libc.syscall(SECCOMP, SET_MODE_FILTER, NEW_LISTENER, ctypes.create_string_buffer(filter_))
    if listener < 0:
        sys.exit(os.strerror(ctypes.get_errno()))
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [listener]))
    ours.sendmsg([b"x"], [rights])
    ours.close()
    os.close(listener)
    os.execv(command[0], command)


main()
