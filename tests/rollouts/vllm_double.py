"""A stand-in for vLLM: its documented HTTP, and its class, over transformers on a processor.

It is no vLLM. It speaks the fields and the development endpoints that we use as vLLM 0.32.0 does
(test_vllm_real.py runs against it), really loads the folders that it is told of, and refuses what
vLLM would not allow.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from aiohttp import web
from transformers import AutoModelForCausalLM


class Engine:
    """Draws token by token from the weights of a folder, with prompts' logits cached."""

    def __init__(self, folder: str) -> None:
        self.folders: list[str] = []
        self.cached: dict[tuple[int, ...], torch.Tensor] = {}
        self.reload(folder)

    def reload(self, folder: str) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder).double().eval()
        self.folders.append(folder)

    @torch.no_grad()
    def generate(self, told: dict[str, Any]) -> tuple[list[int], list[float], str]:
        """Ids, their log-probabilities before temperature, and why it ended."""
        prompt, ids, values = list(told["prompt"]), [], []
        source = torch.Generator().manual_seed(told["seed"])
        for _ in range(told["max_tokens"]):
            logits = self._logits(tuple(prompt), tuple(ids))
            if told["temperature"] == 0:
                token = int(logits.argmax())
            else:
                assert told["top_p"] == 1.0 and told["top_k"] == 0, "the double draws from all"
                p = (logits / told["temperature"]).softmax(-1)
                token = int(torch.multinomial(p, 1, generator=source))
            ids.append(token)
            values.append(float(logits.log_softmax(-1)[token]))
            if token in told["stop_token_ids"]:
                return ids, values, "stop"
        return ids, values, "length"

    def _logits(self, prompt: tuple[int, ...], ids: tuple[int, ...]) -> torch.Tensor:
        """What a prefix cache does: the prompt's are those of the weights that first read it."""
        if not ids and prompt in self.cached:
            return self.cached[prompt]
        found = self.model(torch.tensor([[*prompt, *ids]])).logits[0, -1]
        if not ids:
            self.cached[prompt] = found
        return found


class Server:
    """`vllm serve` in development mode."""

    def __init__(self, folder: str, dev: bool = True) -> None:
        self.engine = Engine(folder)
        self.dev = dev
        self.paused = False
        self.calls: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.keeps = False
        """Whether blocks are still held, so that what is cached of prompts stays."""
        self.broken = 0
        """Answers that are yet to be broken off."""

    def routes(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/v1/models", self.models)
        app.router.add_post("/v1/completions", self.completions)
        if self.dev:
            for name in ("pause", "resume", "collective_rpc", "reset_prefix_cache"):
                app.router.add_post(f"/{name}", getattr(self, name))
        return app

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "student"}]})

    async def completions(self, request: web.Request) -> web.Response:
        told = await request.json()
        self.calls.append("completions")
        self.bodies.append(told)
        assert not self.paused, "asked while it was paused"
        if told["model"] != "student":
            return web.json_response({"error": {"message": "no such model"}}, status=404)
        ids, values, reason = self.engine.generate(told)
        if self.broken:
            self.broken -= 1
            ids, values, reason = ids[:1], values[:1], "abort"
        choice = {
            "index": 0,
            "text": "",
            "finish_reason": reason,
            "stop_reason": ids[-1] if reason == "stop" else None,
            "token_ids": ids if told.get("return_token_ids") else None,
            "prompt_logprobs": None,
            "logprobs": {
                "tokens": [str(i) for i in ids],
                "token_logprobs": values,
                "top_logprobs": [{} for _ in ids],
            },
        }
        return web.json_response({"choices": [choice]})

    async def pause(self, request: web.Request) -> web.Response:
        assert request.query["mode"] == "wait"
        self.calls.append("pause")
        self.paused = True
        return web.json_response({"status": "paused"})

    async def collective_rpc(self, request: web.Request) -> web.Response:
        told = await request.json()
        self.calls.append(told["method"])
        assert self.paused and told["method"] == "reload_weights"
        try:
            self.engine.reload(told["kwargs"]["weights_path"])
        except OSError as error:
            del self.engine.model  # vLLM lets go of the former before it reads
            why = f"Call to collective_rpc method failed: Worker failed with error '{error}'"
            told = {"message": why, "type": "InternalServerError", "param": None, "code": 500}
            return web.json_response({"error": told}, status=500)
        return web.json_response({"results": [None]})

    async def reset_prefix_cache(self, request: web.Request) -> web.Response:
        self.calls.append("reset_prefix_cache")
        if not self.keeps:
            self.engine.cached = {}
        return web.json_response({"success": not self.keeps})

    async def resume(self, request: web.Request) -> web.Response:
        self.calls.append("resume")
        self.paused = False
        return web.json_response({"status": "resumed"})


@contextmanager
def serving(server: Server) -> Iterator[str]:
    """Its address, while it answers."""
    loop = asyncio.new_event_loop()
    ready: list[int] = []
    started = threading.Event()

    async def begin() -> web.AppRunner:
        runner = web.AppRunner(server.routes())
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        ready.append(runner.addresses[0][1])
        started.set()
        return runner

    def work() -> None:
        runner = loop.run_until_complete(begin())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert started.wait(30)
    try:
        yield f"http://127.0.0.1:{ready[0]}/v1"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)


class LLM:
    """`vllm.LLM`, as far as it is used; sleeps and wakes."""

    made: ClassVar[list[LLM]] = []

    def __init__(self, model: str, **settings: Any) -> None:
        self.engine = Engine(model)
        self.settings = settings
        self.awake = {"weights", "kv_cache"}
        LLM.made.append(self)

    def sleep(self, level: int) -> None:
        assert self.settings["enable_sleep_mode"] and level == 1
        self.awake = set()

    def wake_up(self, tags: list[str] | None = None) -> None:
        self.awake |= set(tags or ["weights", "kv_cache"])

    def collective_rpc(self, method: str, kwargs: dict[str, str]) -> None:
        assert method == "reload_weights" and "weights" in self.awake
        self.engine.reload(kwargs["weights_path"])

    def reset_prefix_cache(self) -> None:
        self.engine.cached = {}

    def generate(self, prompts: list[Any], params: list[Any], use_tqdm: bool) -> list[Any]:
        assert self.awake == {"weights", "kv_cache"}, "asked in its sleep"
        found = []
        for prompt, how in zip(prompts, params, strict=True):
            told = {**vars(how), "prompt": prompt["prompt_token_ids"]}
            ids, values, reason = self.engine.generate(told)
            rows = [{i: SimpleNamespace(logprob=v)} for i, v in zip(ids, values, strict=True)]
            one = SimpleNamespace(token_ids=ids, logprobs=rows, finish_reason=reason)
            found.append(SimpleNamespace(outputs=[one]))
        return found


MODULE = SimpleNamespace(LLM=LLM, SamplingParams=lambda **how: SimpleNamespace(**how))
"""What `import vllm` gives."""
