"""A row's tokens are what the model is prompted with, the answer's own, and one end token."""

from __future__ import annotations

from typing import Any

import pytest

from client_sdk.errors import ContributionError
from client_sdk.training.examples import encode_example, encode_prompt
from tests.kits.word_tokenizers import ADDED, CHATML, TOOLS, of_words, shown

USER = {"role": "user", "content": "what is it"}
ANSWER = {"role": "assistant", "content": "a thing"}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"name": "it"}'}}
SCHEMA = {"type": "function", "function": {"name": "thing", "parameters": {}}}
FIRST = {"nothing": "", "bos": "<s> ", "cls and sep": "[CLS] ", "bos and eos": "<s> ", "eos": ""}


def row_of(tokenizer: Any, example: Any, max_tokens: int = 64) -> str:
    return shown(tokenizer, encode_example(tokenizer, example, max_tokens))


class TestWithoutATemplate:
    @pytest.mark.parametrize("added", ADDED)
    def test_nothing_that_a_tokenizer_adds_stands_inside_a_row(self, added: str) -> None:
        tokenizer = of_words(added)
        first = FIRST[added]
        assert row_of(tokenizer, ("what is it", "a thing")) == (
            f"{first}what is it *a *thing *</s>"
        )
        assert row_of(tokenizer, {"messages": [USER, ANSWER, USER, ANSWER]}) == (
            f"{first}what is it *a *thing *</s> what is it *a *thing *</s>"
        )

    @pytest.mark.parametrize("added", ADDED)
    def test_the_prompt_is_what_stands_before_the_answer(self, added: str) -> None:
        tokenizer = of_words(added)
        row = encode_example(tokenizer, ("what is it", "a thing"), 64)
        prompt = encode_prompt(tokenizer, "what is it")
        assert list(row.tokens[: len(prompt)]) == prompt
        assert row.counts == (False,) * len(prompt) + (True,) * 3
        assert prompt[-1] != tokenizer.eos_token_id

    @pytest.mark.parametrize("added", ADDED)
    def test_ends_that_are_written_in_the_text_are_not_written_twice(self, added: str) -> None:
        tokenizer = of_words(added)
        row = encode_example(tokenizer, ("<s> what </s>", "it </s> </s>"), 64)
        assert row.tokens.count(tokenizer.eos_token_id) == 1
        assert row.tokens[-1] == tokenizer.eos_token_id
        assert row.tokens.count(tokenizer.bos_token_id) == 1

    def test_a_tokenizer_without_the_letter_of_the_probe(self) -> None:
        tokenizer = of_words("bos and eos")

        def without(text: str, **named: Any) -> Any:
            return type(tokenizer).__call__(tokenizer, text if text != "a" else "", **named)

        class Other:
            chat_template = None
            eos_token_id = tokenizer.eos_token_id
            sep_token_id = None

            def __call__(self, text: str, **named: Any) -> Any:
                return without(text, **named)

        assert encode_prompt(Other(), "what") == [tokenizer.bos_token_id, *_ids(tokenizer, "what")]  # type: ignore[arg-type]

    def test_tools_need_a_template(self) -> None:
        with pytest.raises(ContributionError, match="example-tools"):
            encode_example(of_words(), {"messages": [USER, ANSWER], "tools": [SCHEMA]}, 64)


class TestWithATemplate:
    @pytest.mark.parametrize("added", ADDED)
    def test_what_a_tokenizer_adds_is_not_added_to_what_the_template_writes(
        self, added: str
    ) -> None:
        tokenizer = of_words(added, CHATML)
        assert row_of(tokenizer, (USER["content"], ANSWER["content"])) == (
            "<s> user what is it </s> <s> assistant *a *thing *</s>"
        )
        prompt = encode_prompt(tokenizer, "what is it")
        assert shown_prompt(tokenizer, prompt) == "<s> user what is it </s> <s> assistant"

    def test_tools_and_their_calls_are_written(self) -> None:
        tokenizer = of_words("nothing", TOOLS)
        call = {"role": "assistant", "content": None, "tool_calls": [CALL]}
        found = {"role": "tool", "content": "a", "tool_call_id": "1"}
        row = {"messages": [USER, call, found, ANSWER], "tools": [SCHEMA]}
        written = (
            "tools: thing <s> user what is it </s> <s> assistant *call *it *</s> "
            "<s> tool a </s> <s> assistant *a *thing *</s>"
        )
        assert row_of(tokenizer, row) == written
        assert row_of(tokenizer, {**row, "tools": '[{"function": {"name": "thing"}}]'}) == written
        older = {"role": "assistant", "content": None, "function_call": CALL["function"]}
        assert row_of(tokenizer, {**row, "messages": [USER, older, found, ANSWER]}) == written

    def test_tools_that_the_template_passes_over_are_refused(self) -> None:
        with pytest.raises(ContributionError, match="example-tools"):
            row_of(of_words("nothing", CHATML), {"messages": [USER, ANSWER], "tools": [SCHEMA]})
        nothing = {"messages": [USER, ANSWER], "tools": []}
        assert row_of(of_words("nothing", CHATML), nothing).endswith("*a *thing *</s>")

    def test_a_call_that_the_template_passes_over_teaches_no_empty_answer(self) -> None:
        call = {"role": "assistant", "content": None, "tool_calls": [CALL]}
        row = {"messages": [USER, call, {"role": "tool", "content": "it"}, ANSWER]}
        assert row_of(of_words("nothing", CHATML), row) == (
            "<s> user what is it </s> <s> assistant </s> <s> tool it </s> "
            "<s> assistant *a *thing *</s>"
        )

    def test_a_prompt_that_ends_in_words_for_the_model_alone(self) -> None:
        """As templates of reasoning models have it: the turn itself may be without them."""
        template = CHATML.replace("'<s> assistant '", "'<s> assistant then '")
        assert row_of(of_words("nothing", template), ("what", "a thing")) == (
            "<s> user what </s> <s> assistant *a *thing *</s>"
        )

    def test_a_prompt_that_changes_earlier_turns_is_refused(self) -> None:
        template = "{% if add_generation_prompt %}{{ 'then ' }}{% endif %}" + CHATML
        with pytest.raises(ContributionError, match="example-template"):
            row_of(of_words("nothing", template), ("what", "a thing"))


@pytest.mark.parametrize("template", [None, CHATML])
class TestWhatCounts:
    def test_weights_of_turns(self, template: str | None) -> None:
        tokenizer = of_words("nothing", template)
        for weight, star in ((0, ""), (0.0, ""), (1, "*"), (None, "*"), (float("nan"), "*")):
            row = {"messages": [USER, {**ANSWER, "weight": weight}, USER, ANSWER]}
            text = row_of(tokenizer, row)
            assert text.count(f"{star}a {star}thing {star}</s>") == (2 if star else 1)
            assert text.endswith("*a *thing *</s>")
        none = {"messages": [USER, {**ANSWER, "weight": 0}]}
        assert "*" not in row_of(tokenizer, none)

    def test_messages_of_a_prompt_do_not_count(self, template: str | None) -> None:
        row = {"prompt": [USER, ANSWER, USER], "completion": [{**ANSWER, "content": "it"}]}
        text = row_of(of_words("nothing", template), row)
        assert text.count("*") == 2
        assert text.endswith("*it *</s>")

    @pytest.mark.parametrize("answer", ["", " \n"])
    def test_an_empty_answer_teaches_nothing(self, template: str | None, answer: str) -> None:
        assert "*" not in row_of(of_words("nothing", template), ("what", answer))

    def test_an_answer_before_every_prompt_is_context(self, template: str | None) -> None:
        row = {"messages": [ANSWER, USER, {**ANSWER, "content": "it"}]}
        text = row_of(of_words("nothing", template), row)
        assert text.count("*") == 2
        assert text.endswith("*it *</s>")


def shown_prompt(tokenizer: Any, tokens: list[int]) -> str:
    return " ".join(tokenizer.convert_ids_to_tokens(tokens))


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
