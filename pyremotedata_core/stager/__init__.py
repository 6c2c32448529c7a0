"""The Stager: remote files on the local disk, one copy per node, whoever asks.

``stager`` is the face, ``bringing`` gets one file here however many ask, ``lease`` keeps it,
``source`` is what may bring it in place of the engine, ``draft`` is for files that go the other
way, ``nodecache`` is the directory and its locks, ``place`` says where that lies.
"""

from .draft import Draft
from .lease import Lease
from .source import Source
from .stager import Counts, Stager, shared_stager

__all__ = ["Counts", "Draft", "Lease", "Source", "Stager", "shared_stager"]
