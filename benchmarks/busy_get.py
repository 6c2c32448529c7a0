"""Download through `Remote` beside N threads that compute in pure Python: N URL DESTINATION."""

import sys
import threading

from pyremotedata_core import Remote, RemoteURL


def spin() -> None:
    """Hold the interpreter lock as much as one thread can."""
    number = 0
    while True:
        number += 1


threads, url, destination = int(sys.argv[1]), RemoteURL.parse(sys.argv[2]), sys.argv[3]
for _ in range(threads):
    threading.Thread(target=spin, daemon=True).start()
with Remote(url.parent) as remote:
    remote.get(url, destination)
