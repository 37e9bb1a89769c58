"""A Ray cluster of several nodes on one computer, to try `embed --engine ray` with.

    python demo/ray_nodes.py --nodes 2 --cpus 1

starts it, prints the address to give to `--address`, and ends it upon Ctrl-C. A node is
killed by the process id that is printed for it. Ray listens on 127.0.0.1 alone.

`ray start` does the same for real machines. For several nodes on one computer it is of no
use: it takes the address 127.0.0.1 for that of the network card, and listens on all.
"""

from __future__ import annotations

import argparse
import os
import signal
import threading

HOST = "127.0.0.1"
# Read by Ray when it is imported: keep the address as it is.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


def main() -> None:
    parser = argparse.ArgumentParser(description="A Ray cluster on this computer alone")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--cpus", type=int, default=1, help="of each node")
    parser.add_argument("--port", type=int, default=6379)
    asked = parser.parse_args()

    from ray.cluster_utils import Cluster

    node = {"num_cpus": asked.cpus, "node_ip_address": HOST}
    head = {**node, "gcs_server_port": asked.port, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(asked.nodes - 1):
            added = cluster.add_node(**node)
            raylet = added.all_processes["raylet"][0].process.pid
            print(f"A node more: kill -9 {raylet} kills it", flush=True)
        cluster.wait_for_nodes()
        print(
            f"Ready: --engine ray --address {cluster.address}   (Ctrl-C ends)", flush=True
        )
        told = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: told.set())
        told.wait()
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
