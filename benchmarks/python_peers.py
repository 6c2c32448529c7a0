"""Move a file or tree with another library: LIBRARY get|put SSH_CONFIG HOST SOURCE DIRECTORY.

Runs in the peers' own virtual environment; see ``peers.py``.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from pathlib import Path
from typing import Any


def main() -> None:
    """Move it."""
    library, verb, config, host, source, into = sys.argv[1:]
    move = {"asyncssh": use_asyncssh, "paramiko": use_paramiko, "0.1.13": use_pyremotedata}
    move[library](verb, config, host, source, into)


def use_asyncssh(verb: str, config: str, host: str, source: str, into: str) -> None:
    """asyncssh: all files of a tree, 64 at once, its largest requests."""
    import asyncssh

    async def run() -> None:
        ciphers = ["aes128-gcm@openssh.com"]
        login = asyncssh.connect(host, config=[config], encryption_algs=ciphers)
        async with login as connection, connection.start_sftp_client() as sftp:
            one = asyncio.Semaphore(64)
            copy = sftp.get if verb == "get" else sftp.put

            async def move(name: str) -> None:
                async with one:
                    await copy(os.path.join(source, name), os.path.join(target, name))

            # All trees of the benchmark are flat, or one level deep.
            if verb == "get" and await sftp.isdir(source):
                names = await remote_files(sftp, source)
            elif verb == "put" and os.path.isdir(source):
                names = local_files(source)
            else:
                await copy(source, into)
                return
            target = os.path.join(into, os.path.basename(source))
            make = os.makedirs if verb == "get" else sftp.makedirs
            for directory in sorted({os.path.dirname(os.path.join(target, n)) for n in names}):
                made = make(directory, exist_ok=True)
                if made is not None:
                    await made
            await asyncio.gather(*map(move, names))

    asyncio.run(run())


async def remote_files(sftp: Any, source: str) -> list[str]:
    """Return the paths of all files below a remote directory."""
    found: list[str] = []
    waiting = [""]
    while waiting:
        below = waiting.pop()
        async for entry in sftp.scandir(os.path.join(source, below)):
            if entry.filename in (".", ".."):
                continue
            path = os.path.join(below, entry.filename)
            directory = entry.attrs.type == 2
            (waiting if directory else found).append(path)
    return found


def local_files(source: str) -> list[str]:
    """Return the paths of all files below a local directory."""
    files = (path for path in Path(source).rglob("*") if path.is_file())
    return [str(path.relative_to(source)) for path in files]


def use_paramiko(verb: str, config: str, host: str, source: str, into: str) -> None:
    """paramiko: one file after the other, reads and writes pipelined."""
    import paramiko

    with open(config) as file:
        options = paramiko.SSHConfig.from_file(file).lookup(host)
    client = paramiko.SSHClient()
    client.load_host_keys(options["userknownhostsfile"])
    client.connect(
        options["hostname"],
        int(options["port"]),
        options["user"],
        key_filename=options["identityfile"],
        look_for_keys=False,
        allow_agent=False,
    )
    with client, client.open_sftp() as sftp:
        target = os.path.join(into, os.path.basename(source))
        if os.path.isdir(source):  # the server's files are this machine's
            for name in local_files(source):
                path = os.path.join(target, name)
                if not os.path.isdir(os.path.dirname(path)):
                    os.makedirs(os.path.dirname(path))
                getattr(sftp, verb)(os.path.join(source, name), path)
        else:
            getattr(sftp, verb)(source, target)


def use_pyremotedata(verb: str, config: str, host: str, source: str, into: str) -> None:
    """pyremotedata 0.1.13, the library that this one grew out of, with its default settings."""
    with tempfile.TemporaryDirectory() as home:
        # Its lftp is told of the server by lftp's own settings.
        Path(home, "rc").write_text(f"set sftp:connect-program 'ssh -a -x -F {config}'\n")
        os.environ["LFTP_HOME"] = home
        from pyremotedata.implicit_mount import IOHandler

        with open(config) as file:
            lines = [line.split() for line in file]
        said = {words[0]: words[1] for words in lines if len(words) > 1}
        login = {"user": said["User"], "password": "", "remote": host, "port": int(said["Port"])}
        with IOHandler(**login, local_dir=home) as io:
            if os.path.isdir(source):
                into = os.path.join(into, os.path.basename(source))
            if verb == "get":
                io.download(source, into)
            else:
                io.upload(source, into)


if __name__ == "__main__":
    main()
