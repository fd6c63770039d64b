"""Text in and out: prompts and chats to ids, ids to text. Knows neither torch nor Redis nor the engine.

files.py        a model's directory: where it is, its JSON files, the fingerprint of weights, tokenizer and template
generation.py   what config.json and generation_config.json say: vocabulary, ending ids, default sampling values
prompts.py      TextModel: prompts, chats and given ids to prompt ids
token_bytes.py  one token's bytes in the text, for every kind of tokenizer
stops.py        stop strings: which one completes first, and how much of the text could still become one
stream.py       TextStream: one job's tokens in, pieces of ids and text out that may be published
"""

from worker.text.files import ModelFilesError, ModelFilesInvalid, ModelFilesMissing
from worker.text.generation import GenerationDefaults
from worker.text.prompts import BadPrompt, TextModel
from worker.text.stream import Piece, TextStream

__all__ = [
    "BadPrompt",
    "GenerationDefaults",
    "ModelFilesError",
    "ModelFilesInvalid",
    "ModelFilesMissing",
    "Piece",
    "TextModel",
    "TextStream",
]
