"""Who answers questions about latents: an endpoint over HTTP, a local language model, or the embedded world itself."""
