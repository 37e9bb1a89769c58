"""Serve the demo:  python demo/serve.py DATABASE PORT

On the port, or the next one that is free.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def main() -> None:
    database, wanted = sys.argv[1], int(sys.argv[2])
    port = next(port for port in range(wanted, wanted + 100) if is_free(port))
    if port != wanted:
        print(f"Port {wanted} is in use")
    print(
        f"The gallery: http://127.0.0.1:{port}/gallery/gallery   (Ctrl-C ends)", flush=True
    )
    metadata = Path(__file__).with_name("metadata.json")
    command = [sys.executable, "-m", "datasette", "serve", database]
    os.execv(sys.executable, [*command, "--port", str(port), "--metadata", str(metadata)])


if __name__ == "__main__":
    main()
