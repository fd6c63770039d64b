"""Decoder architectures and their weights. Ids in, logits out; knows nothing of scheduling, text or Redis.

config.py      config.json and generation_config.json as one checked, frozen value
checkpoint.py  a directory or hub id; safetensors, whole or sharded, tensor by tensor
quantisation.py what a checkpoint's quantised weights are
projections.py projections as they are stored, and as they are kept
rope.py        rotary tables: default, linear, llama3
decoder.py     the decoder itself: Llama, Mistral, Qwen2, Qwen3
"""
