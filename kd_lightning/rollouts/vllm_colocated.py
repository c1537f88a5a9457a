"""Answers drawn by vLLM in the process that trains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kd_lightning.errors import KDError
from kd_lightning.models.drawing import Draw, Drawn
from kd_lightning.rollouts.served import ServedEngine, Told, checked, seed_of


class VLLMColocated(ServedEngine):
    """vLLM draws on the same device; between drawings it sleeps and gives its memory back.

    One process and one device: each process of a run has an engine of its own.

    Source: Kwon et al. 2023 (vLLM), arXiv 2309.06180; its guide to sleep mode.
    """

    everywhere = True

    def __init__(
        self,
        memory_share: float = 0.3,
        logprobs: Told = "engine",
        sleep: bool = True,
        settings: dict[str, Any] | None = None,
    ) -> None:
        """Store the settings.

        Args:
            memory_share: Of the device's memory that vLLM may take while it draws.
            logprobs: As for VLLMServer.
            sleep: Whether it gives weights and cache back between drawings (not on a processor).
            settings: Further arguments of `vllm.LLM` (`max_model_len`, `dtype`).
        """
        super().__init__(logprobs)
        if not 0 < memory_share < 1:
            raise KDError(f"memory_share lies strictly between 0 and 1, not {memory_share}")
        self.memory_share = memory_share
        self.sleep = sleep
        self.settings = settings
        self._llm: Any = None

    def load(self, folder: Path) -> None:
        path = str(folder.resolve())
        if self._llm is None:
            self._llm = self._made(path)
        else:
            if self.sleep:
                self._llm.wake_up(tags=["weights"])
            self._llm.collective_rpc("reload_weights", kwargs={"weights_path": path})
            if self.sleep:
                self._llm.wake_up(tags=["kv_cache"])
            self._llm.reset_prefix_cache()
        self._asleep = False
        self._rest()

    def _made(self, path: str) -> Any:
        try:
            return _vllm().LLM(
                model=path,
                gpu_memory_utilization=self.memory_share,
                enable_sleep_mode=self.sleep,
                logprobs_mode="raw_logprobs",
                **(self.settings or {}),
            )
        except ValueError as error:
            if "sleep mode" not in str(error).lower():
                raise
            raise KDError(
                "vLLM has no sleep mode on this device: write engine.init_args.sleep: false"
            ) from error

    def close(self) -> None:
        """Give vLLM's memory back; `load` begins anew."""
        self._llm = self.loaded = None

    def drawn(self, requests: Sequence[Draw], ends: list[int]) -> list[Drawn]:
        vllm = _vllm()
        if self._asleep:
            self._llm.wake_up()
            self._asleep = False
        how = [
            vllm.SamplingParams(
                max_tokens=draw.room,
                temperature=draw.sampling.temperature,
                top_p=draw.sampling.top_p,
                top_k=draw.sampling.top_k,
                seed=seed_of(draw),
                stop_token_ids=ends,
                logprobs=0,
                detokenize=False,
            )
            for draw in requests
        ]
        prompts = [{"prompt_token_ids": list(draw.prompt)} for draw in requests]
        made = self._llm.generate(prompts, how, use_tqdm=False)
        self._rest()
        return [self._drawn(output.outputs[0], ends) for output in made]

    def _drawn(self, output: Any, ends: list[int]) -> Drawn:
        tokens = list(output.token_ids)
        told = [
            float(row[token].logprob)
            for row, token in zip(output.logprobs or (), tokens, strict=False)
        ]
        return checked(tokens, told, output.finish_reason == "length", ends, "vLLM")

    def _rest(self) -> None:
        """Weights to the processor's memory, where drawing and loading find them again."""
        if self.sleep:
            self._llm.sleep(level=1)
            self._asleep = True


def _vllm() -> Any:
    try:
        import vllm
    except ImportError:
        raise KDError("VLLMColocated needs: pip install 'kd-lightning[vllm]'") from None
    return vllm
