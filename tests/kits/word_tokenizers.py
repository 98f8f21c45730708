"""Made-up tokenizers of whole words, which show what they add to a text."""

from __future__ import annotations

from functools import cache
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = (
    *("<unk>", "<s>", "</s>", "[CLS]", "[SEP]", "user", "assistant", "system", "tool", "call"),
    *("what", "is", "it", "a", "thing", "and", "then", "tools:", "None"),
)
ADDED = {
    "nothing": None,
    "bos": "<s> $A",
    "cls and sep": "[CLS] $A [SEP]",
    "bos and eos": "<s> $A </s>",
    "eos": "$A </s>",
}
CHATML = (
    "{% for m in messages %}{{ '<s> ' + m['role'] + ' ' + m['content'] + ' </s> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s> assistant ' }}{% endif %}"
)
TOOLS = (
    "{% if tools %}{{ 'tools: ' + tools[0]['function']['name'] + ' ' }}{% endif %}"
    "{% for m in messages %}{{ '<s> ' + m['role'] + ' ' + m['content'] + ' ' }}"
    "{% for c in m.tool_calls or [] %}{{ 'call ' + c.function.arguments.name + ' ' }}{% endfor %}"
    "{{ '</s> ' }}{% endfor %}{% if add_generation_prompt %}{{ '<s> assistant ' }}{% endif %}"
)


def of_words(added: str = "nothing", chat_template: str | None = None) -> Any:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_core(ADDED[added])),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )
    tokenizer.chat_template = chat_template
    return tokenizer


@cache
def _core(added: str | None) -> str:
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if added is not None:
        marks = [(word, WORDS.index(word)) for word in WORDS[1:5]]
        core.post_processor = processors.TemplateProcessing(single=added, special_tokens=marks)
    return str(core.to_str())


def shown(tokenizer: Any, row: Any) -> str:
    """Words in order; a star before each that counts in the loss."""
    words = tokenizer.convert_ids_to_tokens(row.tokens)
    return " ".join(("*" if c else "") + w for w, c in zip(words, row.counts, strict=True))
