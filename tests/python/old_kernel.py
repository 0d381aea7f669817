"""Runs a program as an older kernel would: old_kernel.py CALL[,CALL] PROGRAM ARGUMENTS…

`peer-pidfd` refuses SO_PEERPIDFD as Linux before 6.5 does, `pidfd-info` refuses PIDFD_GET_INFO as
Linux before 6.13 does. A seccomp filter answers in the kernel's place.
"""

import ctypes
import errno
import os
import struct
import sys

LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
NUMBER, SECOND, THIRD = 0, 24, 32

GETSOCKOPT, IOCTL = {"x86_64": (55, 16), "aarch64": (209, 29)}[os.uname().machine]
SO_PEERPIDFD = 77
# _IOWR(0xFF, 11, struct pidfd_info): the size, in the bits from 16 on, differs from version to version.
PIDFD_GET_INFO_64 = 0xC000FF0B | 64 << 16


def refuse(call, argument, value, error):
    """Four instructions that answer one call with an error, if its argument is this."""
    return [
        (LOAD, 0, 0, NUMBER),
        (EQUAL, 0, 3, call),
        (LOAD, 0, 0, argument),
        (EQUAL, 0, 1, value),
        (RETURN, 0, 0, ERRNO | error),
    ]


REFUSALS = {
    "peer-pidfd": refuse(GETSOCKOPT, THIRD, SO_PEERPIDFD, errno.ENOPROTOOPT),
    "pidfd-info": refuse(IOCTL, SECOND, PIDFD_GET_INFO_64, errno.ENOTTY),
}


def main():
    names, *command = sys.argv[1:]
    program = [line for name in names.split(",") for line in REFUSALS[name]]
    program.append((RETURN, 0, 0, ALLOW))
    code = b"".join(struct.pack("HBBI", *line) for line in program)
    code = ctypes.create_string_buffer(code, len(code))
    filter_ = struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.create_string_buffer(filter_), 0, 0
    ):
        sys.exit(os.strerror(ctypes.get_errno()))
    os.execv(command[0], command)


main()
