"""CPython in WebAssembly."""
