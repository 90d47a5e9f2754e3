"""What rank 0 does before a run of several processes begins: refuse what cannot be shared, tell the others."""

from __future__ import annotations

import os
import sys

import torch

from kssm import meeting, ranks
from kssm.config import TrainConfig
from kssm.device import Compute, choose
from kssm.errors import BadUsage
from kssm.following import Brief
from kssm.launched import Launch
from kssm.meeting import Stoppable
from kssm.ranks import Ranks
from kssm.wishes import Wishes


def compute_for(wishes: Wishes, launch: Launch | None) -> Compute:
    """Where to compute: the device that was wished for, or this rank's own of several.

    Raises:
        BadUsage: it is not here, or cannot be shared out.
    """
    if launch is None:
        return choose(wishes.device, wishes.precision)
    meeting.meet(launch)  # from now on another rank that is asked to stop can say so
    return ranks.own_device(launch, choose(ranks.device_of(wishes.device), wishes.precision))


def require_whole_shares(training: TrainConfig, compute: Compute) -> None:
    """Refuse what the ranks cannot share: a batch of unequal shares, and the state that goes from step to step."""
    if training.carry_state and compute.ranks > 1:
        raise BadUsage(
            "--carry-state: the state that goes from step to step is not shared out among ranks",
            "leave --carry-state out, or train without torchrun",
        )
    # A mean of unequal shares would weigh some sequences more.
    if training.rows % compute.ranks:
        raise BadUsage(
            f"the effective batch of {training.batch_size} x {training.gradient_accumulation} = {training.rows} "
            f"sequences cannot be shared equally by {compute.ranks} ranks",
            "choose another --batch-size or --gradient-accumulation, or another --nproc-per-node",
        )


def idle_cores(launch: Launch | None, compute: Compute) -> list[str]:
    """A line for people where torchrun's one thread for each rank leaves cores idle: a choice, no mistake to mend."""
    if launch is None or compute.device.type != "cpu":
        return []
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    share = cores // launch.local_world
    if share <= torch.get_num_threads():
        return []
    return [f"  {cores} cores are here: OMP_NUM_THREADS={share} before torchrun would give each rank {share}"]


def form(launch: Launch, word: Brief, run: Stoppable) -> Ranks:
    """Tell the other ranks what to train, and form the process group with them.

    Raises:
        Stopped: a rank was asked to stop meanwhile.
        LostRank: a rank is gone.
    """
    store = meeting.meet(launch)
    meeting.say(store, word)
    meeting.gather(store, launch, run)
    return Ranks(launch, store, word.compute.device, word.disk_wait_s)
