"""Channels to the services: options that survive long prefills, retries where they are safe, TLS where configured."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

MAX_MESSAGE_BYTES = 16 * 1024 * 1024

# UNAVAILABLE before the first answer is asked again: inference changes nothing, and what changes something carries a
# request id, by which the service knows a repeat. Deletes and unregistering are neither, so they are not repeated.
_RETRIED = (
    "InferenceService",
    "ModelsService",
    "AgentsService",
    "ResponsesService",
    "ConversationsService",
    "PromptsService",
    "ChatCompletionsService",
    "BatchesService",
    "InspectService",
)
_NOT_RETRIED = (
    ("ModelsService", "UnregisterModel"),
    ("AgentsService", "DeleteAgent"),
    ("AgentsService", "DeleteSession"),
    ("ResponsesService", "DeleteResponse"),
    ("ConversationsService", "DeleteConversation"),
    ("ConversationsService", "DeleteConversationItem"),
    ("PromptsService", "DeletePrompt"),
    ("ChatCompletionsService", "DeleteChatCompletion"),
)
SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{"service": f"llamastack.v1.{service}"} for service in _RETRIED],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        },
        {"name": [{"service": f"llamastack.v1.{service}", "method": method} for service, method in _NOT_RETRIED]},
    ],
    "retryThrottling": {"maxTokens": 20, "tokenRatio": 0.2},
}

OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
)


@dataclass(frozen=True, kw_only=True)
class TlsFiles:
    """PEM files of a TLS connection."""

    ca: Path
    """Certificates of the authority that signed the services' certificates."""
    cert: Path | None = None
    """Our certificate, where the services ask for one (mTLS)."""
    key: Path | None = None
    """The key of our certificate."""


def connect(
    address: str,
    *,
    tls: TlsFiles | None = None,
    interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
) -> grpc.aio.Channel:
    """A channel to `host:port` or `unix:/path`; it connects with the first call.

    Unix sockets never leave the machine and are guarded by the rights of their folder, so services use no TLS on them.
    """
    if tls is None or address.startswith("unix:"):
        return grpc.aio.insecure_channel(address, options=OPTIONS, interceptors=list(interceptors))
    credentials = grpc.ssl_channel_credentials(
        root_certificates=tls.ca.read_bytes(),
        private_key=tls.key.read_bytes() if tls.key else None,
        certificate_chain=tls.cert.read_bytes() if tls.cert else None,
    )
    return grpc.aio.secure_channel(address, credentials, options=OPTIONS, interceptors=list(interceptors))
