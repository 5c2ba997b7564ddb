"""The health check inside our images: exit 0 when this container's operator port says that it is ready.

Consumes `GET /ready`, or the path that is named, on port 9464; produces what it said, for `docker inspect`. Nothing but
a socket is imported, since each container runs this every few seconds.
"""

import socket
import sys

ADDRESS, TIMEOUT_S = ("127.0.0.1", 9464), 2.0


def main(path: str) -> int:
    """0 or 1, as Docker wants it."""
    try:
        with socket.create_connection(ADDRESS, TIMEOUT_S) as line:
            line.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            answer = b""
            while part := line.recv(4096):
                answer += part
    except OSError as error:
        print(error)
        return 1
    head, _, said = answer.partition(b"\r\n\r\n")
    print(said.decode(errors="replace").strip())
    return 0 if head.split(b" ", 2)[1:2] == [b"200"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "/ready"))
