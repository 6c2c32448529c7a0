"""What a provider knows of the Snakemake that runs it, beyond what the plugin interface tells.

The interface names neither the outputs of one job together nor the kind of process it runs in.
Both are read from the workflow, which is found at the one place where it makes the provider.
Where anything is not as expected, every answer is the plain one: no siblings, not a cluster job.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from itertools import chain
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_CALLERS_AT_MOST = 30
# What Snakemake gets through the local file system only, or not at all.
_NOT_STORED = ("pipe", "service", "nodelocal")


def _or(plain: Callable[[], Any]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Give the plain answer where the workflow is not as a question expects it."""

    def decorate(question: Callable[P, T]) -> Callable[P, T]:
        @wraps(question)
        def ask(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return question(*args, **kwargs)
            except Exception:
                return plain()

        return ask

    return decorate


class Host:
    """The workflow that a provider serves.

    Parameters
    ----------
    workflow : object or None
        Snakemake's workflow, None if it is not known.
    """

    def __init__(self, workflow: Any = None) -> None:
        self._workflow = workflow
        self._jobs: dict[int, Any] = {}
        self._objects: list[Any] = []  # keeps the ids of `_jobs` from being used again
        self._jobs_of: tuple[int, int] | None = None
        self._finished: set[Any] = set()
        self._targets: dict[int, Any] = {}  # with the objects, as in `_objects`
        self._targets_of: tuple[int, int] | None = None
        self._looked_at: tuple[int, int, int] | None = None

    @classmethod
    def of_caller(cls) -> Host:
        """Return the host whose storage registry is making the calling provider."""
        frame = sys._getframe(1)
        for _ in range(_CALLERS_AT_MOST):
            if frame.f_code.co_name == "register_storage":
                return cls(getattr(frame.f_locals.get("self"), "workflow", None))
            if frame.f_back is None:
                break
            frame = frame.f_back
        return cls()

    @property
    def is_main_process(self) -> bool:
        """Whether this process schedules the jobs."""
        return bool(getattr(self._workflow, "is_main_process", False))

    @property
    def is_remote_job(self) -> bool:
        """Whether this process runs a job for the main process, perhaps on another node."""
        return bool(getattr(self._workflow, "remote_exec", False))

    @property
    def shares_local_copies(self) -> bool:
        """Whether all processes of the workflow see the same local copies."""
        return self._shares("STORAGE_LOCAL_COPIES")

    @property
    def stores_again(self) -> bool:
        """Whether the main process stores once more what this one, a remote job, stores."""
        return self.is_remote_job and self.shares_local_copies and self._shares("INPUT_OUTPUT")

    @property
    def fetches_for_jobs(self) -> bool:
        """Whether the inputs of all jobs that this process schedules come through it.

        Cluster jobs with places of their own fetch for themselves, and this process only for jobs
        that run in it.
        """
        return self.shares_local_copies or bool(getattr(self._workflow, "local_exec", True))

    @property
    def own_job_id(self) -> str | None:
        """The id of the SLURM job that runs this process and no other of Snakemake's beside it.

        A job may run many, if it runs the main process.
        """
        plugin = getattr(self._workflow, "executor_plugin", None)
        is_step = getattr(plugin, "name", None) == "slurm-jobstep"
        return os.environ.get("SLURM_JOB_ID") if is_step else None

    @property
    def jobs_follow_links(self) -> bool:
        """Whether the jobs that read what this process retrieves see all of this node's files.

        Not in a container, which sees some directories only, and not on other nodes.
        """
        settings = getattr(self._workflow, "deployment_settings", None)
        methods = getattr(settings, "deployment_method", ())
        if settings is None or any(method.name == "APPTAINER" for method in methods):
            return False
        return self._runs_jobs or not self.shares_local_copies

    @property
    def _runs_jobs(self) -> bool:
        """Whether this process runs, and stores the outputs of, all jobs that it schedules."""
        return self.is_main_process and bool(getattr(self._workflow, "local_exec", False))

    @_or(list)
    def siblings(self, storage_object: Any) -> list[Any]:
        """Return the other objects that Snakemake is about to store with an output of a job.

        In the main process it stores the outputs of a finished job one after another, and at the
        first one all are finished. None for logs, which are stored for failed jobs, too.
        """
        if not self.is_main_process:
            return []
        return [
            other
            for other in _stored_of(self._job(storage_object))
            if other is not storage_object and type(other) is type(storage_object)
        ]

    @_or(list)
    def files_of(self, provider: Any) -> list[Any]:
        """Return the objects of a provider that jobs read or make."""
        jobs = self._workflow.dag.jobs
        files = (f for job in jobs for f in chain(job.input, _made_by(job)) if f.is_storage)
        return [f.storage_object for f in files if f.storage_object.provider is provider]

    @_or(bool)
    def is_output(self, storage_object: Any) -> bool:
        """Return whether an object is an output of a job."""
        return self._job(storage_object) is not None

    @_or(bool)
    def makes(self, storage_object: Any) -> bool:
        """Return whether an object is an output of a job that this process has yet to run."""
        if not self._runs_jobs or self._workflow.iocache.active:  # the DAG is being built
            return False
        return not self._workflow.dag.finished(self._job(storage_object))

    @_or(bool)
    def is_mere_target(self, storage_object: Any) -> bool:
        """Return whether an object is the input of a ready job that runs nothing, as `rule all`."""
        dag = self._workflow.dag
        of = (len(dag.ready_jobs), len(dag._finished))
        if of != self._targets_of:
            self._targets_of = of
            targets = (job for job in dag.ready_jobs if not job.is_group() and job.is_norun)
            objects = [f.storage_object for job in targets for f in job.input if f.is_storage]
            self._targets = {id(each): each for each in objects}
        return id(storage_object) in self._targets

    @_or(list)
    def stored_elsewhere(self) -> list[Any]:
        """Return the outputs of jobs that are done since this was last asked.

        Nothing where the main process stores what its cluster jobs have made: it knows it then.
        """
        if not self.is_main_process or self._shares("INPUT_OUTPUT"):
            return []
        finished = self._workflow.dag._finished
        if len(finished) == len(self._finished):
            return []
        new = finished - self._finished
        self._finished |= new
        return [f.storage_object for job in new for f in job.output if f.is_storage]

    @_or(lambda: None)
    def unwritable(self, provider: Any) -> tuple[str, str] | None:
        """Return rule and query of an output of a job to come that a provider would store."""
        if self._workflow.dryrun or self._workflow.iocache.active:
            return None  # the DAG is being built, or is only shown
        dag = self._workflow.dag
        looked_at = (id(provider), id(dag), len(dag.jobs))
        if looked_at == self._looked_at:
            return None
        for job in dag.needrun_jobs():
            for found in _stored_of(job):
                if found.provider is provider:
                    return job.rule.name, found.print_query
        self._looked_at = looked_at
        return None

    def _shares(self, what: str) -> bool:
        settings = getattr(self._workflow, "storage_settings", None)
        return any(usage.name == what for usage in getattr(settings, "shared_fs_usage", ()))

    def _job(self, storage_object: Any) -> Any:
        """Return the job that has an object among its outputs."""
        job = self._jobs.get(id(storage_object))
        if job is None:
            jobs = self._workflow.dag.jobs
            of = (id(self._workflow.dag), len(jobs))
            if of != self._jobs_of:
                self._jobs_of = of
                pairs = [
                    (f.storage_object, job) for job in jobs for f in job.output if f.is_storage
                ]
                self._objects = [output for output, _job in pairs]
                self._jobs = {id(output): job for output, job in pairs}
            job = self._jobs[id(storage_object)]
        return job


def _stored_of(job: Any) -> Iterator[Any]:
    """Yield the objects of outputs, benchmark and logs of a job that are stored."""
    for f in _made_by(job):
        if (
            f.is_storage
            and f.storage_object.retrieve
            and not any(k in f.flags for k in _NOT_STORED)
        ):
            yield f.storage_object


def _made_by(job: Any) -> Iterator[Any]:
    """Return the outputs, benchmark and logs of a job."""
    return chain(job.output, [job.benchmark] if job.benchmark else [], job.log)
