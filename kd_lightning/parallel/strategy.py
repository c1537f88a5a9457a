"""Both models sharded over all processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer

from kd_lightning.errors import KDError
from kd_lightning.models.causal import CausalLM
from kd_lightning.models.loading import DTYPES
from kd_lightning.parallel import states
from kd_lightning.parallel.meeting import meeting
from kd_lightning.parallel.sharding import Sharding, give_back, shard
from kd_lightning.reliability import checkpoint_io
from kd_lightning.reliability.commit import require_whole


class KDStrategy(ModelParallelStrategy):
    """Student and frozen teacher, each sharded layer by layer over the processes [FSDP2].

    Gradients and optimizer state are sharded like the student. Runs on CPU processes (gloo) too.
    """

    def __init__(
        self,
        replicas: int = 1,
        tensor_parallel_size: int = 1,
        student: Sharding = Sharding(),  # noqa: B008 (frozen)
        teacher: Sharding = Sharding(generate="sharded"),  # noqa: B008 (frozen)
        gradient_exchange: Literal["every", "last"] = "every",
        save_distributed_checkpoint: bool = True,
        timeout_seconds: float = 1800.0,
    ) -> None:
        """Store the settings.

        Args:
            replicas: Copies of the models [HSDP]: each is sharded over the processes divided by
                this number; put a copy on a node, so that weights travel within it.
            tensor_parallel_size: Only 1: layers are not split within.
            student: How the student is spread.
            teacher: How the teacher is spread; quantised ones stay whole.
            gradient_exchange: Gradients are added up over processes after every micro-batch, and
                kept as shards, or after the last one, whole until then.
            save_distributed_checkpoint: A checkpoint is a folder that all processes write; false:
                one file, put together by the first process.
            timeout_seconds: How long an exchange may take before the run ends.
        """
        super().__init__(
            data_parallel_size=1,  # the real one is known when processes are
            tensor_parallel_size=1,
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=None,
            timeout=timedelta(seconds=timeout_seconds),
        )
        if tensor_parallel_size != 1:
            raise KDError(
                "layers are not split within (tensor parallel): write tensor_parallel_size=1, and "
                "shard over more processes"
            )
        if replicas < 1:
            raise KDError("KDStrategy: replicas must be at least 1")
        self.replicas = replicas
        self.of_student = student
        self.of_teacher = teacher
        self.gradient_exchange = gradient_exchange
        self.in_one_file = not save_distributed_checkpoint
        self.mesh: DeviceMesh | None = None
        self.meeting: Any = None  # held as long as the processes live

    # ---- set-up -------------------------------------------------------------------------------

    def setup_environment(self) -> None:
        """Processes as `replicas` rows of shards: Lightning's `auto` would mean nodes."""
        world = self.num_nodes * self.num_processes
        if world % self.replicas:
            raise KDError(
                f"{world} processes cannot hold {self.replicas} copies: write a number of "
                "trainer.strategy.replicas that divides trainer.devices times trainer.num_nodes"
            )
        if self.root_device.type == "cuda" and (
            self.of_student.cpu_offload or self.of_teacher.cpu_offload
        ):
            self._process_group_backend = "cpu:gloo,cuda:nccl"
        self._data_parallel_size = world
        with meeting(self) as self.meeting:
            super().setup_environment()
        kind = self.root_device.type
        if self.replicas == 1:
            self.mesh = init_device_mesh(kind, (world,), mesh_dim_names=("shard",))
        else:
            shape = (self.replicas, world // self.replicas)
            self.mesh = init_device_mesh(kind, shape, mesh_dim_names=("replica", "shard"))

    def setup(self, trainer: Trainer) -> None:
        super().setup(trainer)
        # a weight gathered in inference mode could not be trained with; Lightning spares only its
        # own older strategy
        loops = (trainer.validate_loop, trainer.test_loop, trainer.predict_loop)
        for loop in (*loops, trainer.fit_loop.epoch_loop.val_loop):
            loop.inference_mode = False

    def shard_student(self, student: CausalLM) -> None:
        """Spread the student; called while the module is configured."""
        if any(p.dtype == torch.int8 for p in student.parameters()):
            raise KDError(
                "KDStrategy cannot save adapters on weights of 8 bits: write "
                "--model.student.quantization=nf4, or --trainer.strategy=ddp"
            )
        self._shard(student, self.of_student, self._mixed())

    def shard_teacher(self, teacher: CausalLM) -> None:
        """Spread a teacher's model, in its own precision."""
        self._shard(teacher, self.of_teacher, None)

    def _shard(self, model: CausalLM, how: Sharding, otherwise: torch.dtype | None) -> None:
        assert self.mesh is not None, "processes first: the models are configured after them"
        shard(model, how, self.mesh, DTYPES.get(how.compute, otherwise))

    def _mixed(self) -> torch.dtype | None:
        return torch.bfloat16 if self.precision_plugin.precision == "bf16-mixed" else None

    def model_to_device(self) -> None:
        """What is not sharded goes to the device; shards are there, or wait in host memory."""
        assert self.lightning_module is not None
        for part in self.lightning_module.children():
            if not isinstance(part, FSDPModule):
                part.to(self.root_device)

    # ---- a step -------------------------------------------------------------------------------

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Backward passes before the last: no exchange between copies, or none at all."""
        self._exchange(False)
        try:
            yield
        finally:
            self._exchange(True)

    def _exchange(self, wanted: bool) -> None:
        assert self.lightning_module is not None
        for part in self.lightning_module.children():
            if isinstance(part, FSDPModule) and self.gradient_exchange == "last":
                part.set_requires_gradient_sync(wanted)
            elif isinstance(part, FSDPModule) and self.replicas > 1:
                part.set_requires_all_reduce(wanted)

    # ---- checkpoints --------------------------------------------------------------------------

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """What is learned, sharded (or whole, on the first process); a collective call."""
        assert self.lightning_module is not None
        return states.collect(self.lightning_module, whole=self.in_one_file)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        assert self.lightning_module is not None
        give_back(self.lightning_module)
        inner = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        options = StateDictOptions(full_state_dict=self.in_one_file, cpu_offload=True)
        state = get_optimizer_state_dict(self.lightning_module, inner, options=options)
        if self.in_one_file and self.is_global_zero:
            return states.by_number(state, states.names(self.lightning_module, inner))
        return state

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """A folder that all processes write, or one file; a full disk is the same error on all."""
        if self.in_one_file:
            super().save_checkpoint(checkpoint, filepath, storage_options)
            return
        checkpoint_io.plain(checkpoint)
        size = checkpoint_io.bytes_of(checkpoint)
        target = Path(self.broadcast(filepath))
        if self.broadcast(checkpoint_io.free_bytes(target)) < 1.01 * size:
            raise checkpoint_io.no_space(target, size)
        try:
            super().save_checkpoint(checkpoint, filepath, storage_options)
        except (CheckpointException, OSError, RuntimeError) as error:
            if checkpoint_io.is_full(error) or checkpoint_io.free_bytes(target) < size:
                raise checkpoint_io.no_space(target, size) from error
            if isinstance(error, CheckpointException):  # no Exception: others would not catch it
                raise RuntimeError(f"the checkpoint {target} was not written: {error}") from error
            raise

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Weights and optimizer states in place; the rest is returned. Folder or file."""
        assert self.lightning_module is not None
        path = require_whole(Path(self.broadcast(checkpoint_path)))
        give_back(self.lightning_module)
        read = states.read_folder if path.is_dir() else states.read_file
        rest: Mapping[str, Any] = read(path, self.lightning_module, self.optimizers)
        return dict(rest)
