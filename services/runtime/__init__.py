"""What every gRPC process of the mesh needs: configuration, server, interceptors, telemetry; no domain."""
