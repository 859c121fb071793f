"""A running model: forward pass, buffers, KV cache, sampler, session."""
