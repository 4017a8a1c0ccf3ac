"""`launchctl`, as far as the stand-in for launchd plays it.

    bootstrap DOMAIN PLIST · bootout DOMAIN/LABEL · kickstart [-k] DOMAIN/LABEL
    print DOMAIN/LABEL · enable DOMAIN/LABEL · disable DOMAIN/LABEL

$LAUNCHD_STANDIN is the socket of the stand-in. Exit codes are those of the real command.
"""

import json
import os
import socket
import sys


def main() -> int:
    """Ask, and print what is answered."""
    with socket.socket(socket.AF_UNIX) as conn:
        conn.connect(os.environ["LAUNCHD_STANDIN"])
        conn.sendall(json.dumps(sys.argv[1:]).encode() + b"\n")
        with conn.makefile("rb") as answer:
            said = json.loads(answer.read())
    sys.stdout.write(said["out"])
    if said["error"]:
        sys.stderr.write(said["error"] + "\n")
    return int(said["code"])


if __name__ == "__main__":
    sys.exit(main())
