"""The GPU service: pulls jobs, decodes them in one continuous batch, publishes their tokens.

engine/   sequences, pages, steps: ids in, ids out
models/   decoder architectures and their weights
text/     prompts to ids, ids to text, stop strings
"""
