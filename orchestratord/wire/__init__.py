"""The shapes of the contract, without behaviour: errors, SSE frames, tasks."""
