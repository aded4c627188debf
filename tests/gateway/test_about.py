"""What the gateway says of itself."""

import httpx


async def test_the_document_has_every_route_that_the_stack_serves(http: httpx.AsyncClient) -> None:
    document = (await http.get("/openapi.json")).json()
    listed = (await http.get("/v1/inspect/routes")).json()["data"]
    found = {(path, method.upper()) for path, operations in document["paths"].items() for method in operations}
    missing = {(one["route"], one["method"]) for one in listed} - found
    assert {path.split("/")[2] for path, _ in missing} <= {
        "datasets", "datasetio", "eval", "post-training", "scoring", "scoring-functions", "synthetic-data-generation",
        "reward-scoring",
    }  # fmt: skip
    assert ("/v1/chat/completions", "POST") in found
    assert ("/v1/openai/v1/responses", "POST") in found
    names = set(document["components"]["schemas"])
    text = str(document["paths"]) + str(document["components"])
    used = {part.split("'")[0] for part in text.split("#/components/schemas/")[1:]}
    assert used <= names


async def test_services_that_are_not_there_are_named(http: httpx.AsyncClient) -> None:
    for path, service in (
        ("/v1/datasets", "evaluation"),
        ("/v1beta/datasets", "evaluation"),
        ("/v1/post-training/jobs", "post_training"),
        ("/v1alpha/eval/benchmarks", "evaluation"),
        ("/v1/scoring-functions", "evaluation"),
    ):
        answer = await http.get(path)
        assert answer.status_code == 501
        assert service in answer.json()["error"]["message"]
        assert answer.headers["x-should-retry"] == "false"


async def test_providers_are_named_as_clients_know_them(http: httpx.AsyncClient) -> None:
    listed = (await http.get("/v1/providers")).json()["data"]
    kinds = {(one["api"], one["provider_type"]) for one in listed}
    assert {("vector_io", "inline::faiss"), ("agents", "inline::meta-reference"), ("files", "inline::localfs")} <= kinds
    assert all(one["health"]["status"] == "OK" for one in listed)
    one = (await http.get(f"/v1/providers/{listed[0]['provider_id']}")).json()
    assert one["provider_id"] == listed[0]["provider_id"]
    assert (await http.get("/v1/providers/nobody")).status_code == 404


async def test_health_version_and_the_root_answer(http: httpx.AsyncClient) -> None:
    assert (await http.get("/v1/health")).json()["status"] == "OK"
    assert (await http.get("/readyz")).json()["status"] == "OK"
    assert (await http.get("/v1/version")).json()["version"]
    assert "openai" in (await http.get("/")).json()
    assert (await http.get("/v1alpha/admin/health")).json()["status"] == "OK"


async def test_every_route_is_listed_once(http: httpx.AsyncClient) -> None:
    listed = (await http.get("/v1/inspect/routes")).json()["data"]
    pairs = [(one["method"], one["route"]) for one in listed]
    assert len(set(pairs)) == len(pairs)
    assert {("GET", "/v1/health"), ("POST", "/v1/files"), ("GET", "/v1/vector_stores")} <= set(pairs)
