"""A chat program that learns in a background thread while nobody waits for it.

    python app.py BUNDLE STATE_FOLDER CHATS.jsonl

A line of the file is ``{"prompt": "hello", "answer": "how are you"}``. What the user types is
answered; learning rests meanwhile.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from model import small_model

from client_sdk import (
    Client,
    Conditions,
    Event,
    LoraTrainer,
    PrivacyPolicy,
    RunResult,
    SecaggError,
)

TASK = "small-talk"
Chats = str | Path | Sequence[dict[str, str]]


class Power:
    """What the platform says of the battery."""

    charging = True


def policy(power: Power) -> PrivacyPolicy:
    return PrivacyPolicy(
        min_cohort=20,
        max_epsilon=8.0,
        max_training_s=1_800,
        may_train=Conditions(charging=lambda: power.charging),
    )


class Learner:
    """Takes part in a thread of its own; every method returns at once but :meth:`stop`."""

    def __init__(self, client: Client, trainer: LoraTrainer) -> None:
        self.client = client
        self.result: RunResult | None = None
        self.error: SecaggError | None = None
        self._trainer = trainer
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._take_part, name="learner", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def pause(self) -> None:
        """Somebody chats: the processor is theirs."""
        self.client.pause()

    def resume(self) -> None:
        self.client.resume()

    def stop(self) -> None:
        """Leave in order; what a cohort counts on is finished now, or at the next start."""
        self._stop.set()
        self._thread.join()

    def _take_part(self) -> None:
        try:
            self.result = self.client.run(self._trainer, task=TASK, stop=self._stop)
        except SecaggError as error:  # reason, both values and the way out
            self.error = error


def trainer(chats: Chats) -> LoraTrainer:
    model, tokenizer = small_model()  # a copy of its own: the app answers with another
    return LoraTrainer(model, tokenizer, chats, threads=1)


def learner(
    bundle: str | Path,
    state: str | Path,
    chats: Chats,
    *,
    policy: PrivacyPolicy,
    on_event: Callable[[Event], None],
) -> Learner:
    client = Client.from_bundle(
        bundle, policy=policy, state_dir=state, data_id="small-talk", on_event=on_event
    )
    return Learner(client, trainer(chats))


def answer(model: Any, tokenizer: Any, said: str) -> str:
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": said}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    told = model.generate(**asked, max_new_tokens=8, do_sample=False)
    return str(tokenizer.decode(told[0, asked["input_ids"].shape[1] :], skip_special_tokens=True))


def main() -> None:
    model, tokenizer = small_model()
    learns = learner(*sys.argv[1:4], policy=policy(Power()), on_event=lambda event: None)
    learns.start()
    try:
        while said := input("you: "):
            learns.pause()
            print("app:", answer(model, tokenizer, said))
            learns.resume()
    finally:
        learns.stop()
    print(learns.result or learns.error)


if __name__ == "__main__":
    main()
