"""A text classifier that learns from labels on this device.

    python app.py BUNDLE STATE_FOLDER REVIEWS.jsonl

A line of the file is ``{"text": "a great film", "label": 1}``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model import small_model

from client_sdk import Client, Event, LoraTrainer, PrivacyPolicy, RunResult

TASK = "reviews"
POLICY = PrivacyPolicy(min_cohort=20, max_epsilon=8.0, max_tokens=64, max_training_s=600)


def trainer(reviews: str | Path | Sequence[dict[str, Any]]) -> LoraTrainer:
    model, tokenizer = small_model()  # an app: AutoModelForSequenceClassification.from_pretrained
    return LoraTrainer(model, tokenizer, reviews, threads=1)  # the other cores are the app's


def show(event: Event) -> None:
    print(event.to_json(), flush=True)


def take_part(bundle: str | Path, state: str | Path, reviews: str | Path) -> RunResult:
    client = Client.from_bundle(
        bundle, policy=POLICY, state_dir=state, data_id="reviews", on_event=show
    )
    return client.run(trainer(reviews), task=TASK)  # until the task ends


def main() -> None:
    result = take_part(*sys.argv[1:4])
    for refusal in result.refusals:
        print(refusal)
    for failure in result.failures:  # zeros took the place of a contribution: for this user alone
        print("training failed:", failure)
    for example in result.left_out:
        print("not used:", example)


if __name__ == "__main__":
    main()
