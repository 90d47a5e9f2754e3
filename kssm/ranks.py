"""The group of a run that several processes compute: how ranks agree, share the rows and add their gradients.

Rank 0 alone holds the results directory and speaks. How they find each other is `kssm.meeting`'s.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.nn.parallel import DistributedDataParallel

from kssm.device import Compute
from kssm.errors import BadUsage, LostRank
from kssm.launched import Launch
from kssm.meeting import Stoppable, or_lost, reason_of_stop

_STEP_WAIT = timedelta(minutes=30)
"""How long a rank waits for another one within a step; all enter it together."""

_WAIT = timedelta(days=1)
"""How long the ranks wait for what rank 0 does alone: evaluate, sample, save. A dead rank is noticed at once."""


def device_of(name: str) -> str:
    """The device that "auto" means for several ranks: CUDA where there is one for each, else the CPU.

    Raises:
        BadUsage: one device cannot be shared out.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "mps":
        raise BadUsage("--device mps: one device cannot be shared by several ranks", "use --device cpu, or one process")
    return name


def own_device(launch: Launch, compute: Compute) -> Compute:
    """This rank's own device.

    Raises:
        BadUsage: more ranks than devices on this machine.
    """
    if compute.device.type != "cuda":
        return Compute(compute.device, compute.precision, launch.world)
    count = torch.cuda.device_count()
    if launch.local_world > count:
        raise BadUsage(
            f"{launch.local_world} ranks on {socket.gethostname()}, but {count} CUDA devices: each rank needs its own",
            f"use torchrun --nproc-per-node {count}, or --device cpu",
        )
    torch.cuda.set_device(launch.local_rank)
    return Compute(torch.device("cuda", launch.local_rank), compute.precision, launch.world)


class Ranks:
    """The process group of a run.

    Args:
        launch: this process.
        store: where the ranks have met.
        device: that this rank computes on.
        disk_wait_s: how long rank 0 may wait for room on a full disk, beside all else that it does alone.

    Attributes:
        stopped: the exit code of the stop that all have agreed on; 0 until then.

    Raises:
        LostRank: another rank did not come.
    """

    def __init__(self, launch: Launch, store: Store, device: torch.device, disk_wait_s: float = 0.0) -> None:
        self.launch = launch
        self.stopped = 0
        if launch.local_world == launch.world and (launch.launcher or _meets_here()):
            # gloo would look up the machine's own name, which leads elsewhere, or nowhere, on many machines.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", _loopback())
        with or_lost("the ranks cannot connect"):
            backend = "nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(
                backend, store=PrefixStore("group", store), rank=launch.rank, world_size=launch.world,
                timeout=_STEP_WAIT,
            )  # fmt: skip
            # Apart from the gradients: this one may wait for an evaluation, and never makes a GPU wait.
            self._talk = dist.new_group(backend="gloo", timeout=_WAIT + timedelta(seconds=disk_wait_s))

    def agree(self, code: int) -> int:
        """Whether anybody wants to stop, asked by all at the same place; once agreed, it stays so.

        Args:
            code: with which exit code this rank wants to; 0 to go on.

        Returns:
            The exit code of the stop, 0 to go on, the same on every rank.

        Raises:
            LostRank: a rank is gone.
        """
        if not self.stopped:
            self.stopped = self._largest(code)
        return self.stopped

    def agreed(self, run: Stoppable) -> bool:
        """`agree` for a run, which then knows of a stop that another rank heard of.

        Raises:
            LostRank: a rank is gone.
        """
        self.hear(run)
        code = self.agree(run.exit_code)
        if code and not run.should_stop:
            run.ask_to_stop(*reason_of_stop(code, self.launch))
        return bool(code)

    def hear(self, run: Stoppable) -> None:
        """Ask the run to stop where torchrun is gone, which can no longer end it."""
        if self.launch.is_orphaned:
            run.ask_to_stop(*reason_of_stop(1, self.launch))

    def anywhere(self, here: bool) -> bool:
        """Whether it is so on any rank.

        Raises:
            LostRank: a rank is gone.
        """
        return bool(self._largest(int(here)))

    def _largest(self, value: int) -> int:
        tensor = torch.tensor([value])
        with or_lost("a rank of this run is gone"):
            dist.all_reduce(tensor, dist.ReduceOp.MAX, self._talk)
        return int(tensor)

    def own(self, rows: Tensor) -> Tensor:
        """This rank's share of the rows of a step, [rows / world, S + 1]."""
        return rows.chunk(self.launch.world)[self.launch.rank]

    def wrap(self, module: nn.Module) -> DistributedDataParallel:
        """A module whose backward adds the gradients of all ranks; it begins with rank 0's weights.

        Raises:
            LostRank: a rank is gone.
        """
        device = next(module.parameters()).device
        with or_lost("a rank of this run is gone"):
            self._wrapped = DistributedDataParallel(
                module, device_ids=[device] if device.type == "cuda" else None,
                gradient_as_bucket_view=True,
            )  # fmt: skip
        return self._wrapped

    @contextlib.contextmanager
    def adding(self, together: bool) -> Iterator[None]:
        """What forward and backward of the wrapped module run in.

        Args:
            together: backward adds the gradients of all ranks; else it adds to this rank's own.

        Raises:
            LostRank: a rank is gone.
        """
        with or_lost("a rank of this run is gone") if together else self._wrapped.no_sync():
            yield

    def spread(self, tensors: list[Tensor]) -> None:
        """Give every rank rank 0's values of these tensors.

        Raises:
            LostRank: a rank is gone.
        """
        with or_lost("a rank of this run is gone"):
            for tensor in tensors:
                # AdamW counts steps on the CPU, whatever the device of the weights.
                dist.broadcast(tensor, 0, group=self._talk if tensor.device.type == "cpu" else None)

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean over the ranks, in place.

        Raises:
            LostRank: a rank is gone.
        """
        with or_lost("a rank of this run is gone"):
            dist.all_reduce(tensor)
        return tensor.div_(self.launch.world)

    def part(self) -> None:
        """Wait until rank 0 has saved; the others then stay until it has let the directory go.

        To torchrun the first exit with a code other than 0 is a failure, and it ends the rest: rank 0 must be first.
        """
        with contextlib.suppress(LostRank):
            self._largest(0)
            if self.launch.rank:
                self._largest(0)


def _meets_here() -> bool:
    return os.environ["MASTER_ADDR"] in ("127.0.0.1", "localhost", "::1")


def _loopback() -> str:
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in names if name.startswith("lo")), "lo0" if sys.platform == "darwin" else "lo")
