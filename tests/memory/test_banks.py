"""Banks as resources."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from llamastack import v1
from stack_client.calls import unary
from stack_client.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError
from tests.memory.mesh import EMBEDDING, MemoryMesh


async def test_a_vector_bank_gets_the_model_and_sizes_that_it_did_not_name(
    mesh: MemoryMesh, name: Callable[[], str]
) -> None:
    bank = await mesh.bank(name(), vector={})
    assert bank.params.vector.embedding_model == EMBEDDING
    assert bank.params.vector.embedding_dimension == 16
    assert 0 < bank.params.vector.overlap_size_in_tokens < bank.params.vector.chunk_size_in_tokens


async def test_the_same_bank_again_is_the_same_and_another_is_refused(
    mesh: MemoryMesh, name: Callable[[], str]
) -> None:
    one = name()
    assert await mesh.bank(one, keyvalue={}) == await mesh.bank(one, keyvalue={})
    with pytest.raises(AlreadyExistsError, match=one):
        await unary(mesh.bank(one, graph={}))


async def test_an_unregistered_bank_is_gone(mesh: MemoryMesh, name: Callable[[], str]) -> None:
    one = name()
    await mesh.bank(one, graph={})
    await mesh.banks.UnregisterMemoryBank(v1.UnregisterMemoryBankRequest(memory_bank_id=one))
    with pytest.raises(NotFoundError, match=one):
        await unary(mesh.banks.GetMemoryBank(v1.GetMemoryBankRequest(memory_bank_id=one)))


async def test_a_model_that_is_no_embedding_model_is_refused(mesh: MemoryMesh, name: Callable[[], str]) -> None:
    with pytest.raises(InvalidArgumentError, match="no embedding model"):
        await unary(mesh.bank(name(), vector={"embedding_model": "scripted"}))


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"vector": {"metadata_fields": [{"name": "a", "type": 99}]}}, r"metadata_fields\[0\].type: give string"),
        ({"keyword": {"metadata_fields": [{"name": "a", "type": 99}]}}, r"metadata_fields\[0\].type: give string"),
        ({"keyword": {"fields": [{"name": "a", "boost": math.inf}]}}, "boost is inf"),
        ({"keyword": {"fields": [{"name": "a", "boost": math.nan}]}}, "boost is nan"),
        ({"keyword": {"language": "not a tag!"}}, "no BCP 47 tag"),
        ({"keyword": {"language": "e" * 36}}, "no BCP 47 tag"),
    ],
)
async def test_a_bank_that_could_not_be_used_is_refused(
    mesh: MemoryMesh, name: Callable[[], str], params: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        await unary(mesh.bank(name(), **params))


async def test_a_name_of_spaces_alone_is_refused(mesh: MemoryMesh) -> None:
    with pytest.raises(InvalidArgumentError, match="spaces alone"):
        await unary(mesh.bank("   ", graph={}))
