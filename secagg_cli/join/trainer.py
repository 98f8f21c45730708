"""The trainer of ``secagg join``: it loads torch and the model when the first work comes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from secagg.errors import SecaggError
from secagg_cli.background import Background
from secagg_cli.models.libraries import collector_paused
from secagg_cli.output import CommandError

if TYPE_CHECKING:
    import numpy as np

    from client_sdk import TrainingFailure, TrainingJob
    from client_sdk.training.dataset import Cut, LeftOut
    from client_sdk.training.examples import Example
    from secagg.manifest import Manifest


class LazyTrainer:
    """A contributor that loads torch and the model when the first job comes, or beside the rest.

    Args:
        model: what is loaded, whatever a manifest names; None: what the manifest names.
        allowed: names that a manifest may use where ``model`` is None.
    """

    adds_local_noise = True  # LoraTrainer does
    schedules_examples = True  # LoraTrainer does
    groups_units = True  # LoraTrainer does

    def __init__(
        self,
        rows: Sequence[Example],
        model: str | None,
        allowed: frozenset[str] = frozenset(),
        progress: Callable[[str, float | None], None] | None = None,
    ) -> None:
        self._rows = rows
        self._model = model
        self._allowed = allowed
        self._progress = progress
        self._loading: Background[Any] | None = None
        self._trainer: Any = None

    def preload(self) -> None:
        """Raises: CommandError ``preload-model`` without a model's name."""
        if self._model is None:
            raise CommandError("preload-model", "--preload needs --model.")
        name = self._model
        self._loading = Background(lambda: self._load(name))

    def contribute(self, job: TrainingJob) -> Mapping[str, np.ndarray]:
        from client_sdk import TaskRefusal

        if self._trainer is None:
            name = self._name(job.manifest)
            try:
                self._trainer = self._loading.result() if self._loading else self._load(name)
            except Exception as error:  # of the model, not of the data
                if not isinstance(error, SecaggError):
                    raise TaskRefusal(
                        "model-failed",
                        f"The model {name} cannot be loaded.",
                        found=f"{type(error).__name__}: {error}",
                        remedy="Give a whole model that this machine's memory holds.",
                    ) from error
                raise TaskRefusal(
                    error.reason,
                    error.message,
                    expected=error.expected,
                    found=error.found,
                    remedy=error.remedy,
                ) from error
        values: Mapping[str, np.ndarray] = self._trainer.contribute(job)
        return values

    def memory_bytes(self, manifest: Manifest) -> int | None:
        """As :meth:`client_sdk.LoraTrainer.memory_bytes`; the model's config alone is read."""
        if manifest.base_model is None:
            return None
        from transformers import AutoConfig

        from client_sdk.training.memory import task_bytes
        from client_sdk.training.trainer import MICRO_BATCH
        from secagg_cli.models.cache import ensure_model

        config = AutoConfig.from_pretrained(
            ensure_model(self._name(manifest), progress=self._progress)
        )
        return task_bytes(config, manifest, micro_batch=MICRO_BATCH, precision="float32")

    @property
    def left_out(self) -> Sequence[LeftOut]:
        """As :attr:`client_sdk.LoraTrainer.left_out`."""
        return () if self._trainer is None else self._trainer.left_out

    @property
    def cut(self) -> Sequence[Cut]:
        """As :attr:`client_sdk.LoraTrainer.cut`."""
        return () if self._trainer is None else self._trainer.cut

    @property
    def examples(self) -> int | None:
        """As :attr:`client_sdk.LoraTrainer.examples`."""
        return None if self._trainer is None else self._trainer.examples

    @property
    def failure(self) -> TrainingFailure | None:
        """As :attr:`client_sdk.LoraTrainer.failure`."""
        return None if self._trainer is None else self._trainer.failure

    @property
    def owned(self) -> int:
        """As :attr:`client_sdk.LoraTrainer.owned`."""
        return 0 if self._trainer is None else self._trainer.owned

    def _load(self, name: str) -> Any:
        with collector_paused():
            from client_sdk import LoraTrainer
            from secagg_cli.models.cache import ensure_model, load_model

            model, tokenizer = load_model(ensure_model(name, progress=self._progress))
            return LoraTrainer(model, tokenizer, self._rows)

    def _name(self, manifest: Manifest) -> str:
        from client_sdk import TaskRefusal

        if manifest.base_model is None:
            raise TaskRefusal(
                "task-without-model",
                "This task trains no model.",
                remedy="Contribute its vector with the SDK; see client_sdk.Contributor.",
            )
        named = manifest.base_model.name
        if self._model is None and named not in self._allowed:
            raise TaskRefusal(
                "model-not-allowed", f"Nobody here has allowed the base model {named!r}."
            )
        return self._model or named
