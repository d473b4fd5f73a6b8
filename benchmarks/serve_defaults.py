"""The service on Ray Serve's own settings, for the row `defaults` of bench_serve: until SIGTERM.

What `rayrec serve` does, but on a cluster without HAProxy and without Serve's throughput-optimised mode.

    python -m benchmarks.serve_defaults CONFIG PORT
"""

import signal
import sys
import threading

from rayrec.config import ServeConfig
from rayrec.serving.cluster import local_cluster


def main() -> None:
    config, port = ServeConfig.load(sys.argv[1]), int(sys.argv[2])
    stopped = threading.Event()
    with local_cluster(fast_path=False):
        from rayrec.serving.local import deploy

        deploy(config, port=port)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopped.set())
        stopped.wait()


if __name__ == "__main__":
    main()
