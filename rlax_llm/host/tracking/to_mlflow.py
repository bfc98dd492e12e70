"""MLflow: files in the run's directory, unless ``MLFLOW_TRACKING_URI`` names a server."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rlax_llm.host.tracking.tracker import PROJECT, Ended, TrackedRun, as_table

_AT_ONCE = 100  # parameters of a request
_LONGEST = 500  # characters of a parameter
_TABLES = "mlflow.loggedArtifacts"  # the tag by which MLflow's pages find tables
_LISTED = 50  # tables in it, whose value may hold 8,000 characters


class MLflow:
    """A run of MLflow, of the experiment ``rlax_llm`` or ``MLFLOW_EXPERIMENT_NAME``.

    Args:
        run: to be tracked.
    """

    def __init__(self, run: TrackedRun):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None:
            # MLflow wants it said that files are meant; a database would need more packages.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = (run.path.resolve() / "mlruns").as_uri()
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self._metric, self._client = Metric, MlflowClient(tracking_uri=uri)
        self._tables: list[str] = []
        self.where = _where(uri)
        if run.identity is not None:
            self.identity = run.identity
            self._client.set_terminated(self.identity, "RUNNING")
            self._tables = [entry["path"] for entry in json.loads(self._tag(_TABLES) or "[]")]
            return
        experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
        tags = {"mlflow.source.name": f"rlax-llm {run.command}"}
        self.identity = self._client.create_run(experiment, run_name=run.name, tags=tags).info.run_id
        settings = [Param(name, str(value)[:_LONGEST]) for name, value in run.settings.items()]
        for start in range(0, len(settings), _AT_ONCE):
            self._client.log_batch(self.identity, params=settings[start : start + _AT_ONCE])

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        return self._client.create_experiment(name) if found is None else found.experiment_id

    def _tag(self, name: str) -> str | None:
        return self._client.get_run(self.identity).data.tags.get(name)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """The numbers of a step; what MLflow has no names for, such as pass@4, has an underscore there."""
        now = int(time.time() * 1000)
        metrics = [self._metric(re.sub(r"[^\w\-. :/]", "_", name), x, now, step) for name, x in scalars.items()]
        self._client.log_batch(self.identity, metrics=metrics)

    def table(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """A file of its own for each step, in the form of MLflow's tables."""
        columns, cells = as_table(rows)
        path = f"completions/step-{step:06d}.json"
        self._client.log_dict(self.identity, {"columns": columns, "data": cells}, path)
        self._tables = [*(other for other in self._tables if other != path), path][-_LISTED:]
        listed = [{"path": other, "type": "table"} for other in self._tables]
        self._client.set_tag(self.identity, _TABLES, json.dumps(listed))

    def end(self, ended: Ended) -> None:
        """The figure, the card and the summary."""
        self._client.log_dict(self.identity, dict(ended.summary), "summary.json")
        for path in (ended.curves, ended.card):
            if path is not None:
                self._client.log_artifact(self.identity, str(path))
        self._client.set_terminated(self.identity, "FINISHED" if ended.failed is None else "FAILED")


def _where(uri: str) -> str:
    """Where a person looks: a server's pages are there, files need those of the whole package ``mlflow``."""
    if not uri.startswith("file:"):
        return uri
    return (
        f"MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri {uri}, of the whole package (pip install mlflow)"
    )
