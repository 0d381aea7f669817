"""Runs a line of the shell on a terminal of its own and prints what it says there."""

import os
import pty
import sys

pid, end = pty.fork()
if pid == 0:
    os.execvp("sh", ["sh", "-c", sys.argv[1]])
said = b""
while True:
    try:
        piece = os.read(end, 4096)
    except OSError:
        break
    if not piece:
        break
    said += piece
os.waitpid(pid, 0)
sys.stdout.write(said.decode())
