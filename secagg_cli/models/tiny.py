"""``tiny``: a Llama of 140,000 weights, made on the spot in about ten seconds.

It is trained on the public part of the corpus alone, as plain text: the chat template and the
clients' topics are what adapters have to adapt to. For quick looks and tests; its answers are not
meant to be sensible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from secagg_cli.models.corpus import public_pairs
from secagg_cli.models.libraries import collector_paused, quiet_transformers

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

TINY_VERSION = 2  # part of the cache's folder name: raise it with every change below

_VOCABULARY = 1024
_HIDDEN = 64
_LAYERS = 2
_STEPS = 200
_BATCH = 16
_LEARNING_RATE = 4e-3
_TOKENS_MAX = 64
_SEED = 1
_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
_SPECIAL = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>")


def make_tiny(folder: Path, report: Callable[[str, float | None], None]) -> None:
    """Write model and tokenizer to ``folder`` in transformers' format."""
    report("Making the tiny model", 0.0)
    with collector_paused():
        import torch

        tokenizer = _tokenizer()
        model = _model(tokenizer)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads cost more than such small layers take, above all when busy
    try:
        for step in _train(model, tokenizer):
            report("Making the tiny model", step / _STEPS)
    finally:
        torch.set_num_threads(threads)
    with quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    report("Making the tiny model", 1.0)


def _tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        (text for pair in public_pairs() for text in pair),
        trainers.BpeTrainer(
            vocab_size=_VOCABULARY,
            special_tokens=list(_SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<|pad|>",  # noqa: S106  (no secret)
        eos_token="<|end|>",  # noqa: S106
        additional_special_tokens=list(_SPECIAL[2:]),
    )
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


def _model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Initialised from a generator of its own, so that the process's global one stays untouched."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=_HIDDEN,
            intermediate_size=2 * _HIDDEN,
            num_hidden_layers=_LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    generator = torch.Generator().manual_seed(_SEED)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, _HIDDEN**-0.5 / 2, generator=generator)
    return model


def _train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Iterator[int]:
    import torch

    rows = [_row(tokenizer, question, answer) for question, answer in public_pairs()]
    generator = torch.Generator().manual_seed(_SEED)
    optimiser = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=_LEARNING_RATE, total_steps=_STEPS
    )
    model.train()
    for step in range(_STEPS):
        chosen = torch.randint(len(rows), (_BATCH,), generator=generator)
        batch = torch.nn.utils.rnn.pad_sequence(
            [rows[int(i)] for i in chosen],
            batch_first=True,
            padding_value=float(tokenizer.pad_token_id or 0),
        )
        labels = batch.masked_fill(batch == tokenizer.pad_token_id, -100)
        loss = model(input_ids=batch, labels=labels, use_cache=False).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        yield step + 1
    model.eval()


def _row(tokenizer: PreTrainedTokenizerFast, question: str, answer: str) -> torch.Tensor:
    """Plain text, not the chat template: turns and their ends are for the adapter to learn."""
    import torch

    return torch.tensor(tokenizer(f"{question}\n{answer}\n")["input_ids"][:_TOKENS_MAX])
