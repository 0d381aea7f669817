"""systemd as far as an agent sees it, on a real bus: which unit a process is in.

systemd.py BUS MODE UNIT=PROGRAM...: a process is in the unit whose program it runs. MODE `old` has
no GetUnitByPIDFD, as systemd before 253.
"""

import os
import re
import sys
from pathlib import Path

from jeepney import HeaderFields, MessageType, new_error, new_method_return
from jeepney.bus_messages import message_bus
from jeepney.io.blocking import open_dbus_connection

BUS, MODE, *UNITS = sys.argv[1:]
UNITS = dict(reversed(unit.split("=", 1)) for unit in UNITS)
NO_UNIT = "org.freedesktop.systemd1.NoUnitForPID"


def path_of(unit):
    escaped = re.sub("[^a-zA-Z0-9]", lambda found: f"_{ord(found.group()):02x}", unit)
    return f"/org/freedesktop/systemd1/unit/{escaped}"


def unit_of(pid):
    try:
        return UNITS.get(os.readlink(f"/proc/{pid}/exe"))
    except OSError:
        return None


def pid_of(handle):
    with handle.to_file("rb", buffering=0) as file:
        text = Path(f"/proc/self/fdinfo/{file.fileno()}").read_text()
    return int(re.search(r"^Pid:\s*(-?\d+)", text, re.M).group(1))


def answer(message):
    fields = message.header.fields
    member = fields.get(HeaderFields.member)
    if member == "GetUnitByPIDFD" and MODE != "old":
        unit = unit_of(pid_of(message.body[0]))
        if unit is None:
            return new_error(message, NO_UNIT, "s", ("PID does not belong to any loaded unit.",))
        return new_method_return(message, "osay", (path_of(unit), unit, b"\1" * 16))
    if member == "GetUnitByPID":
        unit = unit_of(message.body[0])
        if unit is None:
            return new_error(message, NO_UNIT, "s", ("PID does not belong to any loaded unit.",))
        return new_method_return(message, "o", (path_of(unit),))
    if member == "Get":
        [unit] = [one for one in UNITS.values() if path_of(one) == fields[HeaderFields.path]]
        values = {"Id": unit, "FragmentPath": f"/etc/systemd/system/{unit}"}
        return new_method_return(message, "v", (("s", values[message.body[1]]),))
    unknown = "org.freedesktop.DBus.Error.UnknownMethod"
    return new_error(message, unknown, "s", (f"Unknown method {member}.",))


bus = open_dbus_connection(bus=BUS, enable_fds=True)
bus.send_and_get_reply(message_bus.RequestName("org.freedesktop.systemd1"))
print("serving", flush=True)
while True:
    message = bus.receive()
    if message.header.message_type == MessageType.method_call:
        bus.send(answer(message))
