"""Jobs on many files: fetch, store and remove whole trees, fetch a list.

A tree is walked while its files move. At most so many files are under way; of the entries that
wait, few are in memory and the others on disk. A directory is only listed when few wait.
"""

from .fetching import FetchTree
from .many import FetchMany
from .removing import RemoveTree
from .storing import StoreTree

__all__ = ["FetchMany", "FetchTree", "RemoveTree", "StoreTree"]
