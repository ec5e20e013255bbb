"""Engine drivers, one module each, over one transport and one SSE decoder."""
