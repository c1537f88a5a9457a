"""A model that was trained to tell better from worse answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from kd_lightning.data.encoding import Encoder
from kd_lightning.errors import KDError
from kd_lightning.models import loading
from kd_lightning.rewards.base import Asked, Reward, told
from kd_lightning.rewards.head import HEAD, read_head
from kd_lightning.security.folders import refuse_hostile
from kd_lightning.security.native import import_bitsandbytes
from kd_lightning.types import Batch, Example, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class RewardModel(Reward):
    r"""The scalar of a reward model on the conversation with the answer.

    A folder that `ExportRewardModel` wrote (a causal model and its learned head: :math:`r = w
    \cdot h`, h the state before the answer's last word, as in training), or any transformers
    sequence classifier: its only output, or one of them. Rows are padded on the right with an id
    that none of them contains, so that a classifier which looks for the last token that is no
    padding finds the end token also where that is the tokenizer's padding.
    """

    def __init__(
        self,
        path: str,
        revision: str | None = None,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        form: Literal["conversation", "pair"] = "conversation",
        template: str = "auto",
        label: int = 0,
        scale: float = 1.0,
        rows: int = 16,
        max_length: int | None = None,
    ) -> None:
        """Store the settings.

        Args:
            path: The model's folder or its name on the hub.
            revision: Commit, tag or branch on the hub.
            dtype: Type of the weights; auto: as they are stored.
            form: conversation: with a chat template; pair: question and answer as two segments
                (encoders).
            template: conversation: as for data modules, of the reward model's own tokenizer.
            label: Which output of a classifier is the reward.
            scale: Factor on it.
            rows: Answers at once.
            max_length: Longest conversation in tokens, a longer one is not judged (nan, counted as
                `too long`); None: the model's positions.
        """
        super().__init__()
        self.path = path
        self.revision = revision
        self.dtype = dtype
        self.form = form
        self.template = template
        self.label = label
        self.scale = scale
        self.rows = rows
        self.max_length = max_length
        self._model: Any = None
        self._head: Tensor | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        if rows < 1:
            raise KDError("RewardModel: rows must be at least 1")

    def materialize(self, device: torch.device) -> None:
        if self._model is not None:
            return
        folder = Path(loading.resolve(self.path))
        self._tokenizer = loading.load_tokenizer(self.path, self.revision)
        if (folder / HEAD).is_file():
            made = loading.load_model(self.path, dtype=self.dtype, revision=self.revision)
            self._head = read_head(folder).to(device)
            width = made.config.get_text_config().hidden_size
            if len(self._head) != width:
                raise KDError(f"{folder / HEAD} belongs to another model: its width is not {width}")
        else:
            made = self._classifier(str(folder))
        self._model = torch.nn.Module.to(made, device).eval().requires_grad_(False)

    def _classifier(self, path: str) -> Any:
        from transformers import AutoModelForSequenceClassification

        refuse_hostile(Path(path), weights=True)
        import_bitsandbytes()  # a quantised classifier would
        try:
            made, told = AutoModelForSequenceClassification.from_pretrained(
                path,
                revision=self.revision,
                dtype=loading.DTYPES.get(self.dtype, "auto"),
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        except (OSError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise KDError(
                f"RewardModel: {self.path} is no sequence classifier ({reason})"
            ) from error
        if told["missing_keys"]:
            raise KDError(
                f"RewardModel: {self.path} has no trained head ({min(told['missing_keys'])} is "
                "missing): train one by loss/reward_model.yaml with ExportRewardModel, or name a "
                "sequence classifier"
            )
        if not 0 <= self.label < made.config.num_labels:
            raise KDError(f"RewardModel: label {self.label} is none of {made.config.num_labels}")
        return made

    @torch.no_grad()
    def scores(self, batch: Batch, asked: Sequence[Asked]) -> list[float]:
        assert self._model is not None, "call materialize first"
        encoded = [self._ids(each) for each in asked]
        limit = self.max_length or getattr(
            self._model.config.get_text_config(), "max_position_embeddings", None
        )
        found = [float("nan")] * len(asked)
        fitting = [i for i, (ids, _) in enumerate(encoded) if limit is None or len(ids) <= limit]
        self.count("too long", len(asked) - len(fitting))
        fitting.sort(key=lambda i: (-len(encoded[i][0]), i))
        for start in range(0, len(fitting), self.rows):
            chosen = fitting[start : start + self.rows]
            values = self._forward([encoded[i] for i in chosen])
            for i, value in zip(chosen, values.tolist(), strict=True):
                found[i] = self.scale * value
        return found

    def _ids(self, asked: Asked) -> tuple[list[int], list[int]]:
        """Token ids and segment ids."""
        assert self._tokenizer is not None
        if self.form == "pair":
            both: Any = self._tokenizer(told(asked.example), asked.answer)
            ids = list(both["input_ids"])
            return ids, list(both.get("token_type_ids", [0] * len(ids)))
        turns = (*asked.example.prompt, Message("assistant", asked.answer))
        encoder = Encoder(self._tokenizer, self.template)
        ids = encoder.conversation(Example(asked.example.id, turns)).ids.tolist()
        return (ids[:-1] if self._head is not None else ids), [0] * len(ids)

    def _forward(self, rows: Sequence[tuple[list[int], list[int]]]) -> Tensor:
        device = self._model.device
        lengths = torch.tensor([len(ids) for ids, _ in rows])
        known = {token for ids, _ in rows for token in ids}
        size = self._model.get_input_embeddings().num_embeddings
        pad = next((i for i in range(size) if i not in known), None)
        assert pad is not None, "rows that hold every id of the vocabulary"
        shape = (len(rows), int(lengths.max()))
        ids, kinds = torch.full(shape, pad), torch.zeros(shape, dtype=torch.long)
        mask = torch.zeros(shape, dtype=torch.long)
        for i, (tokens, segments) in enumerate(rows):
            ids[i, : len(tokens)] = torch.tensor(tokens)
            kinds[i, : len(tokens)] = torch.tensor(segments[: len(tokens)])
            mask[i, : len(tokens)] = 1
        given = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        if self._head is not None:
            states = self._model.base_model(**given, use_cache=False).last_hidden_state
            last = states[torch.arange(len(rows)), lengths - 1].float()
            values: Tensor = last @ self._head.float()
            return values
        if self.form == "pair" and getattr(self._model.config, "type_vocab_size", 0) > 1:
            given["token_type_ids"] = kinds.to(device)
        self._model.config.pad_token_id = pad
        logits: Tensor = self._model(**given).logits[:, self.label]
        return logits.float()
