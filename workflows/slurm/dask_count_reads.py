"""Count the reads of remote FASTQ files with Dask, on workers that are SLURM jobs.

    python dask_count_reads.py 'sftp://archive/~/project/reads/*.fastq.gz' COUNTS.tsv --jobs 4

Run it where SLURM's commands are and the nodes can reach: a login node, or a job. It takes
`pyremotedata-suite[dask]` and `dask-jobqueue`, in an environment that the nodes see, too. The
workers load the plugin themselves (``dask_plugin.preload``), so the program knows nothing of it:
it gives remote files to tasks, which open them as local ones.
"""

from __future__ import annotations

import argparse
import gzip
import sys
from pathlib import Path

from dask.distributed import Client
from dask_jobqueue import SLURMCluster

from dask_plugin import RemoteFile, glob, stats

START_TIMEOUT_S = 600
PRELOAD = "export DASK_DISTRIBUTED__WORKER__PRELOAD=dask_plugin.preload"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("reads", help="URL of .fastq.gz files, with * in it")
    parser.add_argument("table", type=Path, help="where the table goes")
    parser.add_argument("--jobs", type=int, default=2, help="how many SLURM jobs")
    parser.add_argument("--cores", type=int, default=1, help="of a job; each has one process")
    parser.add_argument("--memory", default="1GB", help="of a job")
    parser.add_argument("--walltime", default="01:00:00", help="of a job")
    parser.add_argument("--queue", help="SLURM's partition")
    parser.add_argument("--interface", help="network interface that the nodes can reach: ib0, ...")
    chosen = parser.parse_args(arguments)

    files = glob(chosen.reads)
    with (
        SLURMCluster(
            queue=chosen.queue,
            cores=chosen.cores,
            processes=chosen.cores,
            memory=chosen.memory,
            walltime=chosen.walltime,
            interface=chosen.interface,
            job_script_prologue=[PRELOAD],
        ) as cluster,
        Client(cluster) as client,
    ):
        cluster.scale(jobs=chosen.jobs)
        client.wait_for_workers(1, timeout=START_TIMEOUT_S)
        counts = client.gather(client.map(count_reads, files))
        print(stats(client))
    lines = [f"{file.name}\t{count}\n" for file, count in zip(files, counts, strict=True)]
    chosen.table.write_text("".join(lines))
    return 0


def count_reads(file: RemoteFile) -> int:
    """Count the reads of one file: four lines each."""
    with gzip.open(file, "rb") as text:
        return sum(1 for _ in text) // 4


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
