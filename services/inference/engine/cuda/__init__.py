"""The engine's GPU runner: paged attention, captured decode steps, sampling on the device, overlapped steps."""
