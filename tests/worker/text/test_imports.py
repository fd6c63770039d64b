"""The text side starts fast and stands alone."""

import subprocess
import sys


def loaded_by(program: str, *arguments: str) -> set[str]:
    """The modules in a fresh interpreter after `program`."""
    program += "\nimport sys; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", program, *arguments], check=True, capture_output=True, text=True)
    return set(out.stdout.split())


def test_importing_it_loads_neither_torch_nor_transformers():
    """`import worker.text` costs `tokenizers` and the standard library."""
    loaded = loaded_by("import worker.text")
    assert "worker.text.stream" in loaded
    assert not loaded & {"torch", "transformers", "redis", "producer", "worker.engine", "worker.models"}


def test_using_it_loads_no_torch(make_model):
    """Nor does loading a model, encoding a prompt and a chat, and streaming an answer."""
    loaded = loaded_by(
        "import sys; from worker.text import TextModel; model = TextModel.from_pretrained(sys.argv[1])\n"
        "model.encode_prompt('the dog'); ids = model.encode_messages([{'role': 'user', 'content': 'the dog'}])\n"
        "stream = model.stream(ids, stop=['###']); stream.push(ids); stream.finish()",
        str(make_model()),
    )
    assert "transformers" in loaded
    assert not loaded & {"torch", "redis", "producer", "worker.engine", "worker.models"}
