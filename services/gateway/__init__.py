"""The HTTP gateway: Llama Stack and OpenAI clients in, one gRPC hop to the service that does the work."""
