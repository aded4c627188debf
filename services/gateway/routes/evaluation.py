"""Benchmarks, evaluation, scoring and data sets: routes of the evaluation service."""

from typing import Any

from llamastack import v1
from services.gateway.edge import Edge
from services.gateway.request import JsonReply, Reply, Request
from services.gateway.routing import ALPHA, BETA, Route, Row, table
from services.gateway.upstream import Rpc

_BENCHMARK = "/eval/benchmarks/{benchmark_id}"
_ITERATE = Rpc("DatasetIOService.IterateRows")
_PAGES = {"start_index": {"type": "integer", "minimum": 0}, "limit": {"type": "integer", "minimum": -1}}


def routes(edge: Edge) -> list[Route]:
    """The rows."""
    return [
        *table(_eval(edge), api="eval", scope="admin", mounts=ALPHA),
        *table(_scoring(edge), api="scoring", scope="admin"),
        *table(_datasets(edge), api="datasets", scope="admin", mounts=BETA),
    ]


def _eval(edge: Edge) -> list[Row]:
    def job(response: Any, _request: Request) -> Reply:  # noqa: ANN401
        written = edge.encode(response.job)
        status = "in_progress" if written["status"] == "cancelling" else written["status"]
        return JsonReply(value={**written, "status": status})

    result = edge.member("result")
    return [
        ("GET", "/eval/benchmarks", edge.listing("BenchmarksService.ListBenchmarks"), "List benchmarks",
         {"response": v1.ListBenchmarksResponse}),
        ("POST", "/eval/benchmarks", edge.unary("BenchmarksService.RegisterBenchmark", edge.nothing),
         "Register a benchmark", {"request": v1.RegisterBenchmarkRequest}),
        ("GET", _BENCHMARK, edge.unary("BenchmarksService.GetBenchmark", edge.member("benchmark")),
         "Show a benchmark", {"response": v1.Benchmark}),
        ("DELETE", _BENCHMARK, edge.unary("BenchmarksService.UnregisterBenchmark", edge.nothing),
         "Unregister a benchmark", {}),
        ("POST", f"{_BENCHMARK}/jobs", edge.unary("EvalService.RunEval", job), "Run a benchmark",
         {"request": v1.RunEvalRequest, "response": v1.Job}),
        ("POST", f"{_BENCHMARK}/evaluations", edge.unary("EvalService.EvaluateRows", result), "Evaluate rows",
         {"request": v1.EvaluateRowsRequest, "response": v1.EvaluateResult}),
        ("GET", _BENCHMARK + "/jobs/{job_id}", edge.unary("EvalService.GetEvalJob", job), "Show a run",
         {"response": v1.Job}),
        ("DELETE", _BENCHMARK + "/jobs/{job_id}", edge.unary("EvalService.CancelEvalJob", edge.nothing),
         "Cancel a run", {}),
        ("GET", _BENCHMARK + "/jobs/{job_id}/result", edge.unary("EvalService.GetEvalJobResult", result),
         "Show what a run found", {"response": v1.EvaluateResult}),
    ]  # fmt: skip


def _scoring(edge: Edge) -> list[Row]:
    shown = edge.unary("ScoringFunctionsService.GetScoringFunction", edge.member("scoring_function"))
    removed = edge.unary("ScoringFunctionsService.UnregisterScoringFunction", edge.nothing)
    one = "/scoring-functions/{scoring_fn_id:path}"
    return [
        ("POST", "/scoring/score", edge.unary("ScoringService.Score", edge.whole), "Score rows",
         {"request": v1.ScoreRequest, "response": v1.ScoreResponse}),
        ("POST", "/scoring/score-batch", edge.unary("ScoringService.ScoreBatch", edge.whole), "Score a data set",
         {"request": v1.ScoreBatchRequest, "response": v1.ScoreBatchResponse}),
        ("GET", "/scoring-functions", edge.listing("ScoringFunctionsService.ListScoringFunctions"),
         "List scoring functions", {"response": v1.ListScoringFunctionsResponse}),
        ("POST", "/scoring-functions", edge.unary("ScoringFunctionsService.RegisterScoringFunction", edge.nothing),
         "Register a scoring function", {"request": v1.RegisterScoringFunctionRequest}),
        ("GET", one, shown, "Show a scoring function", {"response": v1.ScoringFn}),
        ("DELETE", one, removed, "Unregister a scoring function", {}),
    ]  # fmt: skip


def _datasets(edge: Edge) -> list[Row]:
    async def rows(request: Request) -> Reply:
        edge.require(_ITERATE)
        message = edge.read(_ITERATE, request)
        page = await edge.upstream.unary(_ITERATE, message, request=request)
        data = [edge.encode(one) for one in page.data]
        url = f"/v1/datasetio/iterrows/{request.params['dataset_id']}"
        return JsonReply(value={"data": data, "has_more": page.has_more, "url": url})

    one = "/datasets/{dataset_id:path}"
    show = edge.member("dataset")
    return [
        ("GET", "/datasets", edge.listing("DatasetsService.ListDatasets"), "List data sets",
         {"response": v1.ListDatasetsResponse}),
        ("POST", "/datasets", edge.unary("DatasetsService.RegisterDataset", show), "Register a data set",
         {"request": v1.RegisterDatasetRequest, "response": v1.Dataset}),
        ("GET", one, edge.unary("DatasetsService.GetDataset", show), "Show a data set", {"response": v1.Dataset}),
        ("DELETE", one, edge.unary("DatasetsService.UnregisterDataset", edge.nothing), "Unregister a data set", {}),
        ("GET", "/datasetio/iterrows/{dataset_id:path}", rows, "Read rows", {"query": _PAGES}),
        ("POST", "/datasetio/append-rows/{dataset_id:path}",
         edge.unary("DatasetIOService.AppendRows", edge.nothing), "Append rows", {"request": v1.AppendRowsRequest}),
    ]  # fmt: skip
