"""The shapes of the Llama Stack and OpenAI REST contracts; what each row is for: llama_stack_api, sections 3 to 29."""

from services.gateway.jsonmap import responses
from services.gateway.jsonmap.adapters import ADAPTERS
from services.gateway.jsonmap.codec import Codec
from services.gateway.jsonmap.shapes import Shapes, Union

_UNIONS = {
    "Message": {
        "message": Union(
            key="role",
            tags={"user": "user", "system": "system", "tool": "tool", "assistant": "assistant", "developer": "system",
                  "ipython": "tool"},
        )
    },
    "TurnInputMessage": {"message": Union(key="role", tags={"user": "user", "tool": "tool", "ipython": "tool"})},
    "ContentItem": {"item": Union(tags={"text": "text", "image": "image"}, nested={"image": "image"})},
    "ContentDelta": {"delta": Union(tags={"text": "text", "image": "image", "tool_call": "tool_call"})},
    "SamplingStrategy": {"strategy": Union(tags={"greedy": "greedy", "top_p": "top_p", "top_k": "top_k"})},
    "ResponseFormat": {
        "format": Union(
            tags={"json_schema": "json_schema", "grammar": "grammar", "json_object": "json_object", "regex": "regex",
                  "choice": "choice"},
            nested={"json_schema": "json_schema"},
        )
    },
    "Step": {
        "details": Union(
            key="step_type",
            tags={
                "inference": "inference",
                "tool_execution": "tool_execution",
                "shield_call": "shield_call",
                "memory_retrieval": "memory_retrieval",
                "compaction": "compaction",
                "approval": "approval",
            },
        )
    },
    "Ranker": {"ranker": Union(tags={"rrf": "rrf", "weighted": "weighted", "neural": "neural", "mmr": "mmr"})},
    "ChunkingStrategy": {
        "strategy": Union(
            tags={"auto": "auto", "static": "static", "contextual": "contextual", "sentences": "sentences",
                  "semantic": "semantic"}
        )
    },
    "QueryGeneratorConfig": {"generator": Union(tags={"default": "default", "llm": "llm", "custom": "custom"})},
    "BankParams": {
        "params": Union(
            key="memory_bank_type",
            tags={"vector": "vector", "keyvalue": "keyvalue", "keyword": "keyword", "graph": "graph"},
        )
    },
    "AlgorithmConfig": {"algorithm": Union(tags={"LoRA": "lora", "QAT": "qat"})},
    "EvalCandidate": {"candidate": Union(tags={"model": "model", "agent": "agent"})},
    "ScoringFnParams": {
        "params": Union(
            tags={"llm_as_judge": "llm_as_judge", "regex_parser": "regex_parser", "basic": "basic"}
        )
    },
    "TelemetryEvent": {
        "event": Union(
            tags={"unstructured_log": "unstructured_log", "metric": "metric", "structured_log": "structured_log"}
        )
    },
    "StructuredLog": {
        "payload": Union(tags={"span_start": "span_start", "span_end": "span_end"}, under="payload")
    },
}  # fmt: skip

_OBJECTS = (
    "Benchmark.metadata",
    "Chunk.metadata",
    "Dataset.metadata",
    "FileSearchResult.attributes",
    "Model.metadata",
    "ModerationResult.metadata",
    "RAGDocument.metadata",
    "SafetyViolation.metadata",
    "ScoringFn.metadata",
    "StepViolation.metadata",
    "StoredDocument.metadata",
    "TurnStepStart.metadata",
    "VectorStore.metadata",
    "VectorStoreFile.attributes",
)
"""Free objects that are empty where they are unset."""

STANDARD = Codec(
    Shapes(
        adapters={**ADAPTERS, **responses.ADAPTERS},
        unions={**_UNIONS, **responses.UNIONS},
        enums={
            **responses.ENUMS,
            "HealthStatus": {"OK": "OK", "ERROR": "Error", "NOT_IMPLEMENTED": "Not Implemented"},
            "FilePurpose": {"FINE_TUNE": "fine-tune", "FINE_TUNE_RESULTS": "fine-tune-results"},
            "MetricLabelOperator": {
                "EQUALS": "=", "NOT_EQUALS": "!=", "REGEX_MATCH": "=~", "REGEX_NOT_MATCH": "!~",
            },
        },
        constants={
            "File": {"object": "file"},
            "VectorStore": {"object": "vector_store"},
            "VectorStoreFile": {"object": "vector_store.file"},
            "VectorStoreFileBatch": {"object": "vector_store.files_batch"},
            "VectorStoreContent": {"type": "text"},
            "Batch": {"object": "batch"},
            "BatchErrors": {"object": "list"},
            "Conversation": {"object": "conversation"},
            "ResponseObject": {"object": "response"},
            "CompactResponseResponse": {"object": "response.compaction"},
            "CompletionMessage": {"role": "assistant"},
            "SummaryText": {"type": "summary_text"},
            "ReasoningText": {"type": "reasoning_text"},
        },
        names={"ToolResponseMessage.tool_name": "tool_name"},
        aliases={
            "ToolResponseMessage": {"tool_call_id": "call_id"},
            "InsertChunksRequest": {"vector_store_id": "vector_db_id"},
            "QueryChunksRequest": {"vector_store_id": "vector_db_id"},
            "Chunk": {"stored_chunk_id": "chunk_id"},
            "GetDocumentsRequest": {"document_uuids": "document_ids"},
            "DeleteDocumentsRequest": {"document_uuids": "document_ids"},
        },
        taken={
            # `name` of OpenAI's messages names a participant; native messages have no place for it.
            "UserMessage": frozenset({"name"}),
            "SystemMessage": frozenset({"name"}),
            "ToolResponseMessage": frozenset({"name"}),
            "CompletionMessage": frozenset({"name", "refusal", "annotations", "audio", "function_call"}),
        },
        unset=dict.fromkeys(_OBJECTS, dict) | {"CompletionMessage.content": str},
        absent=frozenset({"UserMessage.context"}),
        hidden=frozenset({"ResponseObject.input", "ResponseObject.last_sequence"}),
        whole=frozenset({"MemoryBank.entry_count", "VectorStore.usage_bytes", "VectorStoreFile.usage_bytes"}),
        schemas=responses.SCHEMAS,
        required={
            "ChatCompletionRequest": ("model_id", "messages"),
            "CompletionRequest": ("model_id", "content"),
            "EmbedRequest": ("model_id", "contents"),
            "BatchCompletionRequest": ("model_id", "content_batch"),
            "RerankRequest": ("model", "query", "items"),
            "RegisterModelRequest": ("model_id",),
            "RegisterShieldRequest": ("shield_id",),
            "RunShieldRequest": ("shield_id", "messages"),
            "RegisterToolGroupRequest": ("toolgroup_id", "provider_id"),
            "InvokeToolRequest": ("tool_name", "kwargs"),
            "InsertRAGDocumentsRequest": ("documents", "vector_db_id"),
            "QueryRAGRequest": ("content", "vector_db_ids"),
            "RegisterVectorDBRequest": ("vector_db_id", "embedding_model"),
            "InsertChunksRequest": ("chunks",),
            "QueryChunksRequest": ("query",),
            "CreateAgentRequest": ("agent_config",),
            "AgentConfig": ("model",),
            "CreateSessionRequest": ("session_name",),
            "CreateTurnRequest": ("messages",),
            "CreateResponseRequest": ("model",),
            "CreatePromptRequest": ("prompt",),
            "CreateBatchRequest": ("input_file_id", "endpoint", "completion_window"),
        },
        unix_times=frozenset(
            {
                "File", "VectorStore", "VectorStoreFile", "VectorStoreFileBatch", "Batch", "Conversation",
                "ResponseObject", "CompactResponseResponse", "ChunkMetadata", "QueryMetricsRequest", "MetricDataPoint",
                "Model",
            }
        ),
    )
)  # fmt: skip
"""The codec of the gateway."""
