"""A name server that answers whatever a file says, each time anew.

    names.py FILE

Serves on 127.0.0.1:53. Every line of FILE is an address that every name has.
"""

import ipaddress
import socket
import struct
import sys

A, AAAA = 1, 28


def answer(query, addresses):
    end = query.index(b"\0", 12) + 5
    kind = struct.unpack("!H", query[end - 4 : end - 2])[0]
    records = b""
    count = 0
    for address in addresses:
        if {4: A, 6: AAAA}[address.version] == kind:
            count += 1
            # A pointer to the name of the question, class IN, no time to live.
            records += struct.pack("!HHHIH", 0xC00C, kind, 1, 0, len(address.packed)) + address.packed
    return query[:2] + struct.pack("!HHHHH", 0x8180, 1, count, 0, 0) + query[12:end] + records


def main():
    end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    end.bind(("127.0.0.1", 53))
    print('{"event": "listening"}', flush=True)
    while True:
        query, sender = end.recvfrom(4096)
        with open(sys.argv[1]) as file:
            addresses = [ipaddress.ip_address(line.strip()) for line in file if line.strip()]
        end.sendto(answer(query, addresses), sender)


main()
