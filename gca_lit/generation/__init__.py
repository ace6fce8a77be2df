"""Text continued by a model: prompts, sampling, and states that are kept on disk."""
