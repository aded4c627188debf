"""What every gRPC process of the mesh needs: config, server, health, interceptors, telemetry. It knows no domain."""
