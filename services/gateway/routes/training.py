"""Fine-tuning, synthetic data, reward scoring: routes of the post_training service."""

from typing import Any

from llamastack import v1
from services.gateway.edge import Edge
from services.gateway.request import Handler, JsonReply, Reply, Request
from services.gateway.routing import ALPHA, Route

_UUID = {"query": {"job_uuid": {"type": "string"}}}


def routes(edge: Edge) -> list[Route]:
    """The rows."""

    def job_id(response: Any, _request: Request) -> Reply:  # noqa: ANN401
        return JsonReply(value={"job_uuid": response.job_uuid})

    def listed(response: Any, _request: Request) -> Reply:  # noqa: ANN401
        return JsonReply(value={"data": [{"job_uuid": one.job.job_id} for one in response.data]})

    def status(response: Any, _request: Request) -> Reply:  # noqa: ANN401
        return JsonReply(value=job_json(edge, response.job))

    def call(method: str, answer: Any) -> Handler:  # noqa: ANN401
        return edge.unary(f"PostTrainingService.{method}", answer)

    show = call("GetTrainingJob", status)
    cancel = call("CancelTrainingJob", edge.nothing)
    artifacts = call("GetTrainingJobArtifacts", edge.whole)
    rows: list[tuple[str, str, Handler, str, dict[str, Any]]] = [
        ("POST", "/supervised-fine-tune", call("SupervisedFineTune", job_id), "Fine-tune a model",
         {"request": v1.SupervisedFineTuneRequest}),
        ("POST", "/preference-optimize", call("PreferenceOptimize", job_id), "Fine-tune a model on preferences",
         {"request": v1.PreferenceOptimizeRequest}),
        ("GET", "/jobs", call("ListTrainingJobs", listed), "List training jobs", {}),
        ("GET", "/job/status", show, "Show a training job", _UUID),
        ("POST", "/job/cancel", cancel, "Cancel a training job", {"request": v1.CancelTrainingJobRequest}),
        ("GET", "/job/artifacts", artifacts, "List a training job's checkpoints", _UUID),
        ("GET", "/jobs/{job_uuid}/status", show, "Show a training job", {}),
        ("POST", "/jobs/{job_uuid}/cancel", cancel, "Cancel a training job", {}),
        ("GET", "/jobs/{job_uuid}/artifacts", artifacts, "List a training job's checkpoints", {}),
    ]  # fmt: skip
    found = [
        Route(
            method=method,
            path=f"/post-training{path}",
            handler=handler,
            api="post_training",
            summary=summary,
            scope="read" if method == "GET" else "admin",
            mounts=ALPHA,
            **more,
        )
        for method, path, handler, summary, more in rows
    ]
    found.append(
        Route(
            method="POST",
            path="/synthetic-data-generation/generate",
            handler=edge.unary("SyntheticDataGenerationService.GenerateSyntheticData", edge.whole),
            api="synthetic_data_generation",
            summary="Make data from dialogs",
            scope="inference",
            request=v1.GenerateSyntheticDataRequest,
            response=v1.GenerateSyntheticDataResponse,
        )
    )
    found.append(
        Route(
            method="POST",
            path="/reward-scoring/score",
            handler=edge.unary("RewardScoringService.RewardScore", edge.whole),
            api="reward_scoring",
            summary="Score generations",
            scope="inference",
            request=v1.RewardScoreRequest,
            response=v1.RewardScoreResponse,
        )
    )
    return found


def job_json(edge: Edge, training: v1.TrainingJob) -> dict[str, Any]:
    """A training job as clients read its status."""
    job = edge.encode(training.job)
    return {
        "job_uuid": training.job.job_id,
        "status": "in_progress" if job["status"] == "cancelling" else job["status"],
        "scheduled_at": job["created_at"],
        "started_at": job["started_at"],
        "completed_at": job["completed_at"],
        "resources_allocated": edge.encode(training)["resources_allocated"],
        "checkpoints": [edge.encode(one) for one in training.checkpoints],
    }
