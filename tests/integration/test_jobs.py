"""The scripts under jobs/, sent through Ray's job submission to a cluster, and what they leave."""

import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.job_submission import JobStatus, JobSubmissionClient

from rayrec import Engine
from rayrec.embedding_store import EmbeddingStore
from rayrec.schema import CONTENT_HASH
from rayrec.workspace import Workspace
from tests.integration.conftest import write_catalog

pytestmark = [pytest.mark.ray, pytest.mark.model]
ROOT = Path(__file__).parents[2]


def start(client: JobSubmissionClient, *command: str) -> str:
    # Ray gives a job the cluster that was started last on this machine, and other tests start some
    here = ray.get_runtime_context().gcs_address
    return client.submit_job(entrypoint=f"RAY_ADDRESS={here} {shlex.join([sys.executable, *command])}")


def submit(client: JobSubmissionClient, *command: str) -> dict[str, Any]:
    """Run a job to its end; its last line, read as JSON."""
    job = start(client, *command)
    deadline = time.monotonic() + 300
    while (status := client.get_job_status(job)) not in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED):
        assert time.monotonic() < deadline, client.get_job_logs(job)[-2000:]
        time.sleep(1)
    logs = client.get_job_logs(job)
    assert status == JobStatus.SUCCEEDED, logs[-2000:]
    return json.loads(logs.strip().splitlines()[-1])


def test_submitted_jobs_embed_and_index(cluster: str, ws: Workspace, tmp_path: Path):
    client = JobSubmissionClient(cluster)
    config = tmp_path / "embed.yaml"
    config.write_text(json.dumps({"source": {"path": str(write_catalog(tmp_path / "items.csv", 300))}}))
    embedded = submit(client, str(ROOT / "jobs/embed_catalog.py"), "--workspace", ws.root, "--config", str(config))
    assert (embedded["items"], embedded["embedded"]) == (300, 300)
    catalog = ws.read_parquet("catalog", embedded["catalog"])
    vectors = EmbeddingStore(ws, embedded["encoder_id"]).lookup(catalog.column(CONTENT_HASH).combine_chunks())
    assert vectors.shape == (300, 384)
    built = submit(client, str(ROOT / "jobs/build_index.py"), "--workspace", ws.root)
    assert built["index"] == ws.current().index
    answer = Engine.open(ws).search("no 17", k=1)
    assert answer.hits[0].item_id == "i000017"


def test_a_scheduled_update_survives_rounds_that_fail_and_ends_when_it_is_stopped(cluster: str, ws: Workspace) -> None:
    client = JobSubmissionClient(cluster)
    job = start(client, str(ROOT / "jobs/update_model.py"), "--workspace", ws.root, "--every", "1s")

    def rounds() -> list[dict[str, Any]]:
        return [json.loads(line) for line in client.get_job_logs(job).splitlines() if line.startswith("{")]

    deadline = time.monotonic() + 120
    while len(rounds()) < 3:
        assert time.monotonic() < deadline, client.get_job_logs(job)[-2000:]
        time.sleep(0.5)
    client.stop_job(job)
    while client.get_job_status(job) != JobStatus.STOPPED:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    told = rounds()
    assert [said["round"] for said in told] == list(range(1, len(told) + 1))
    assert all("no trained model answers" in said["error"] for said in told)
    assert "Traceback" not in client.get_job_logs(job).rsplit("{", 1)[-1]
