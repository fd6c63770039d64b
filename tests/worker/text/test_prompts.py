"""Prompts, chats and given ids to prompt ids."""

from __future__ import annotations

import json

import pytest

from worker.text import BadPrompt, TextModel

BOS = 1
USER = [{"role": "user", "content": "the dog"}]
PLAIN = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
KNOWS_TWO_ROLES = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[U]{{ m['content'] }}{% elif m['role'] == 'assistant' %}"
    "[A]{{ m['content'] }}{% endif %}{% endfor %}[A]"
)
REFUSES_OTHERS = (
    "{% for m in messages %}{% if m['role'] != 'user' %}{{ raise_exception('Only user here!') }}{% endif %}"
)


def load(directory) -> TextModel:
    return TextModel.from_pretrained(str(directory))


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_a_prompt_gets_the_tokenizers_special_tokens_once(make_model, kind):
    """<s> stands before a prompt exactly where the tokenizer's post-processor puts it."""
    without, with_bos = load(make_model(kind, "without")), load(make_model(kind, "with", bos=True))
    plain = without.encode_prompt("the dog")
    assert BOS not in plain
    assert with_bos.encode_prompt("the dog") == [BOS, *plain]


def test_a_prompt_that_begins_with_its_special_token_gets_no_second(make_model):
    """A chat rendered by the sender starts with <s> already; what follows it may be another <s>, and stays."""
    without, with_bos = load(make_model(name="without")), load(make_model(name="with", bos=True))
    assert with_bos.encode_prompt("<s>the dog") == with_bos.encode_prompt("the dog")
    for prompt in ("<s>the dog", "<s><s>the dog"):
        assert without.encode_prompt(prompt).count(BOS) == prompt.count("<s>")
        assert with_bos.encode_prompt(prompt).count(BOS) == prompt.count("<s>")


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("template", [PLAIN, "{{ bos_token }}" + PLAIN])
def test_a_chat_gets_the_templates_special_tokens_and_no_others(make_model, template, bos):
    """Whether or not the tokenizer adds <s> to prompts, a chat begins with it exactly where its template says so."""
    token_ids = load(make_model(template=template, bos=bos)).encode_messages(USER)
    assert token_ids.count(BOS) == ("bos_token" in template)


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_prompts_and_chats_are_encoded_as_transformers_does(make_model, kind):
    """The ids are those of AutoTokenizer, with its special tokens for a prompt and its template for a chat."""
    from transformers import AutoTokenizer

    directory = make_model(kind, bos=True)
    model, reference = load(directory), AutoTokenizer.from_pretrained(str(directory))
    chat = [{"role": "system", "content": "count 你"}, *USER, {"role": "assistant", "content": "🙂"}, *USER]
    assert model.encode_prompt("the  dog, 你好\n") == reference("the  dog, 你好\n")["input_ids"]
    assert model.encode_messages(chat) == reference.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]


def test_a_long_prompt_is_never_cut(make_model):
    """Truncation and padding left in a tokenizer.json, as of its training, are not applied."""
    directory = make_model()
    settings = json.loads((directory / "tokenizer.json").read_text())
    truncation = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    padding = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None}
    padding |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"}
    (directory / "tokenizer.json").write_text(json.dumps(settings | {"truncation": truncation, "padding": padding}))
    model = load(directory)
    assert model._backend.decode(model.encode_prompt("the dog " * 20)) == "the dog " * 20
    assert model._backend.decode(model.encode_prompt("the")) == "the"


def test_given_ids_pass_where_the_model_knows_them(text_models):
    """Every id below the model's vocabulary size is fine, also one that the tokenizer has no token for."""
    model = text_models["byte_level"]
    assert model.check_ids((0, model.vocab_size - 1)) == [0, model.vocab_size - 1]
    assert model.tokenizer_length < model.vocab_size


@pytest.mark.parametrize("bad", [-1, 10**6])
def test_the_first_id_outside_the_vocabulary_is_named(text_models, bad):
    """The refusal says which id, where, and which range there is."""
    model = text_models["byte_level"]
    with pytest.raises(BadPrompt, match=f"id {bad} at position 2 .* expected 0 to {model.vocab_size - 1}") as refused:
        model.check_ids([5, 6, bad, 7, 10**7])
    assert (refused.value.field, refused.value.code) == ("prompt_token_ids", "token_outside_vocabulary")


def test_a_token_that_the_model_lacks_is_refused_by_the_prompts_name(make_model):
    """A tokenizer that was given tokens the model was not: the prompt that uses one is refused, others are not."""
    model = load(make_model(config={"model_type": "llama", "vocab_size": 380}))
    assert model.tokenizer_length > model.vocab_size
    model.encode_prompt("a")
    with pytest.raises(BadPrompt, match="outside the model's vocabulary") as refused:
        model.encode_prompt("a 日本")
    assert refused.value.field == "prompt"


@pytest.mark.parametrize(
    ("field", "encode"),
    [
        ("prompt", lambda model: model.encode_prompt("")),
        ("messages", lambda model: model.encode_messages([])),
        ("prompt_token_ids", lambda model: model.check_ids([])),
    ],
)
def test_an_empty_prompt_is_refused(make_model, field, encode):
    """Nothing to answer is an error of the job, also where the tokenizer would add <s>."""
    with pytest.raises(BadPrompt, match="empty") as refused:
        encode(load(make_model(bos=True)))
    assert (refused.value.field, refused.value.code) == (field, "empty_prompt")


def test_half_a_surrogate_pair_is_refused(text_models):
    """JSON can carry it, UTF-8 can't: the job is refused, not the tokenizer's TypeError raised."""
    for field, encode in (
        ("prompt", lambda model: model.encode_prompt("the \ud83d")),
        ("messages", lambda model: model.encode_messages([{"role": "user", "content": "the \ud83d"}])),
    ):
        with pytest.raises(BadPrompt, match="surrogate") as refused:
            encode(text_models["byte_level"])
        assert (refused.value.field, refused.value.code) == (field, "not_text")


def test_a_chat_for_a_model_without_a_template_is_refused(make_model):
    """The refusal says what to send instead."""
    with pytest.raises(BadPrompt, match="no chat template; send `prompt`") as refused:
        load(make_model(template=None)).encode_messages(USER)
    assert (refused.value.field, refused.value.code) == ("messages", "no_chat_template")


@pytest.mark.parametrize("messages", [["the dog"], [{"content": "the dog"}], [*USER, {"role": 3, "content": "x"}]])
def test_a_message_without_a_role_is_refused_by_its_position(text_models, messages):
    """The refusal names which message it was."""
    with pytest.raises(BadPrompt, match=f"position {len(messages) - 1} has no role") as refused:
        text_models["byte_level"].encode_messages(messages)
    assert refused.value.field == "messages"


@pytest.mark.parametrize(
    "messages", [[*USER, {"role": "wizard", "content": "hey"}], [{"role": "wizard", "content": "x"}]]
)
def test_a_role_the_template_passes_over_is_refused(make_model, messages):
    """A template that knows no such role would lose what it says in silence; the refusal names the role."""
    model = load(make_model(template=KNOWS_TWO_ROLES))
    model.encode_messages([*USER, {"role": "assistant", "content": ""}, {"role": "wizard", "content": "  "}])
    with pytest.raises(BadPrompt, match="no role 'wizard'") as refused:
        model.encode_messages(messages)
    assert (refused.value.field, refused.value.code) == ("messages", "unknown_role")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (REFUSES_OTHERS + "{% endfor %}", "Only user here!"),
        ("{% for m in messages %}", "end of template"),
        ("{{ messages[0]['content'] + 1 }}", "str"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
    ],
)
def test_whatever_the_template_raises_refuses_the_job_with_its_reason(make_model, template, reason):
    """A template's own exception, an error in it and an escape from its sandbox all end that job alone."""
    with pytest.raises(BadPrompt, match=f"chat template refuses these messages: .*{reason}") as refused:
        load(make_model(template=template)).encode_messages([{"role": "wizard", "content": "x"}])
    assert (refused.value.field, refused.value.code) == ("messages", "template_refused")
