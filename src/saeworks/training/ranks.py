"""The processes of a run that ``torchrun`` started: who they are, and what they tell each other.

Every operation here is called by all ranks in the same order. When one of them is gone, the others get one
:class:`RankLost` with a sentence instead of an error of the transport.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from saeworks.errors import InputError, RunError
from saeworks.runtime import launched
from saeworks.training.watch import INTERRUPTED, Lost, Watch

CONNECT = timedelta(minutes=5)
# One rank may write or calibrate for long while the others wait; who is dead is found by the watch, not by this.
LONGEST_WAIT = timedelta(hours=6)
SMALL = 2**18  # entries of a tensor that is sent with others
_joined = 0


class RankLost(RunError):
    """Another rank is gone. ``speaks`` says whether this rank is the one to tell a person."""

    def __init__(self, lost: Lost, speaks: bool) -> None:
        super().__init__(lost.sentence())
        self.lost, self.speaks = lost, speaks


class Ranks:
    """This process among those of the run.

    Attributes:
        rank: number of this process, from 0. count: how many there are.
    """

    def __init__(self, rank: int = 0, count: int = 1, watch: Watch | None = None) -> None:
        self.rank, self.count, self._watch = rank, count, watch

    @property
    def lead(self) -> bool:
        """Whether this is the rank that writes logs, checkpoints and results."""
        return self.rank == 0

    def add(self, tensor: Tensor) -> Tensor:
        """Sum over the ranks, in place; also returned."""
        return self._reduced(tensor, dist.ReduceOp.SUM)

    def least(self, tensor: Tensor) -> Tensor:
        """Minimum over the ranks, in place; also returned."""
        return self._reduced(tensor, dist.ReduceOp.MIN)

    def most(self, tensor: Tensor) -> Tensor:
        """Maximum over the ranks, in place; also returned."""
        return self._reduced(tensor, dist.ReduceOp.MAX)

    def add_all(self, tensors: list[Tensor]) -> None:
        """Sum each of the tensors, of one dtype and device, over the ranks, in place.

        All are under way at once, the small ones together: each sum costs a delay of its own.
        """
        if self.count == 1:
            return
        small = [tensor for tensor in tensors if tensor.numel() <= SMALL]
        together = torch.cat([tensor.flatten() for tensor in small]) if small else None
        sums = [tensor for tensor in tensors if tensor.numel() > SMALL]
        with self._guarded():
            for work in [dist.all_reduce(t, async_op=True) for t in (*sums, *([] if together is None else [together]))]:
                if work is not None:
                    work.wait()
        if together is not None:
            for tensor, part in zip(small, together.split([t.numel() for t in small]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def gathered(self, tensor: Tensor) -> Tensor:
        """``[rank, *shape]``: the tensors of all ranks, which must have one shape."""
        if self.count == 1:
            return tensor[None]
        parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(self.count)]
        with self._guarded():
            dist.all_gather(parts, tensor.contiguous())
        return torch.stack(parts)

    def from_lead(self, tensor: Tensor) -> Tensor:
        """The tensor of the first rank, copied into everyone's; also returned."""
        if self.count > 1:
            with self._guarded():
                dist.broadcast(tensor, 0)
        return tensor

    def text(self, value: str = "") -> str:
        """The text of the first rank, whatever the others have."""
        if self.count == 1:
            return value
        data = torch.frombuffer(bytearray(value.encode() or b"\0"), dtype=torch.uint8)
        length = int(self.from_lead(torch.tensor([len(value.encode())])))
        data = data.clone() if self.lead else torch.zeros(max(length, 1), dtype=torch.uint8)
        return bytes(self.from_lead(data).tolist()[:length]).decode()

    def texts(self, value: str) -> list[str]:
        """The texts of all ranks, in their order."""
        data = torch.frombuffer(bytearray(value.encode() or b"\0"), dtype=torch.uint8)
        lengths = self.gathered(torch.tensor(len(value.encode())))
        padded = torch.zeros(max(int(lengths.max()), 1), dtype=torch.uint8)
        padded[: data.numel()] = data
        rows = self.gathered(padded).tolist()
        return [bytes(row[:length]).decode() for row, length in zip(rows, lengths.tolist(), strict=True)]

    def rows_at_lead(self, own: Tensor, sizes: list[int]) -> Tensor | None:
        """``[sum of sizes, ...]`` on the CPU of the first rank: the rows of all ranks in order. None elsewhere.

        Args:
            own: this rank's rows. sizes: how many every rank has.
        """
        if self.count == 1:
            return own.cpu()
        with self._guarded():
            if not self.lead:
                dist.send(own.detach().contiguous(), 0)
                return None
            whole = torch.empty((sum(sizes), *own.shape[1:]), dtype=own.dtype)
            whole[: sizes[0]] = own.detach()
            for rank in range(1, self.count):
                part = own.new_empty((sizes[rank], *own.shape[1:]))
                dist.recv(part, rank)
                whole[sum(sizes[:rank]) : sum(sizes[: rank + 1])] = part
        return whole

    def barrier(self) -> None:
        """Wait until every rank has come here."""
        self.add(torch.zeros(1))

    def agreed(self, flag: bool) -> bool:
        """Whether any rank says yes."""
        return bool(self.most(torch.tensor([flag], dtype=torch.uint8)))

    def _reduced(self, tensor: Tensor, how: Any) -> Tensor:
        if self.count > 1:
            with self._guarded():
                dist.all_reduce(tensor, how)
        return tensor

    @contextmanager
    def _guarded(self) -> Generator[None]:
        """Turn the transport's error into the sentence about the rank that is gone."""
        try:
            yield
        except RuntimeError as e:
            self.explain()
            first = str(e).splitlines()[0] if str(e) else type(e).__name__
            raise RunError(
                f"The ranks cannot reach each other any more ({first}); check the network and run the same command "
                "with --resume."
            ) from e

    def explain(self) -> None:
        """Raise :class:`RankLost` when another rank is gone; it takes a second when none is."""
        lost = self._watch.lost() if self._watch is not None else None
        if lost is not None and self._watch is not None:
            raise RankLost(lost, self._watch.speaks())

    def leave(self) -> None:
        """Part from the others once everyone is done."""
        if self._watch is not None:
            self.barrier()
            self._watch.leave("")
            self._watch = None
            dist.destroy_process_group()

    def stop(self, reason: str) -> None:
        """Part from the others at once and tell them why; an empty reason for a loss they know of."""
        if self._watch is not None:
            self._watch.leave(reason)
            self._watch = None
            if dist.get_backend() == "gloo":  # closing the connections tells the others; NCCL would wait for them
                dist.destroy_process_group()


ALONE = Ranks()


def join(device: torch.device) -> Ranks:
    """Meet the other processes that ``torchrun`` started; :data:`ALONE` in a process that it did not start.

    Raises ``InputError`` for a device that cannot take part.
    """
    global _joined
    found = launched()
    if found is None:
        return ALONE
    rank, count = found
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"Training on several ranks runs on CPUs or CUDA devices, not on '{device}'; use --device.")
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    kept_by_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    prefix = f"saeworks/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{_joined}"
    _joined += 1
    try:
        keeps = rank == 0 and not kept_by_launcher
        store = dist.TCPStore(host, port, count, keeps, CONNECT, wait_for_workers=False, multi_tenant=True)  # pyright: ignore
        dist.init_process_group(
            "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl",
            store=dist.PrefixStore(f"{prefix}/group", store),  # pyright: ignore
            rank=rank,
            world_size=count,
            timeout=LONGEST_WAIT,
        )
        own = dist.TCPStore(host, port, count, False, CONNECT, wait_for_workers=False)  # pyright: ignore
    except RuntimeError as e:
        first = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise RunError(
            f"Rank {rank} of {count} could not reach the others at {host}:{port} ({first}); check that every process "
            "was started by the same torchrun command and that the machines see each other."
        ) from e
    return Ranks(rank, count, Watch(dist.PrefixStore(f"{prefix}/signs", own), rank, count))  # pyright: ignore


@contextmanager
def joined(device: torch.device) -> Generator[Ranks]:
    """:func:`join` for the length of a block; however it ends, the other ranks learn of it.

    ``SIGTERM``, which ``torchrun`` sends to all when one process died, ends the block like an interrupt, and an
    interrupt that came because another rank is gone becomes :class:`RankLost`.
    """
    ranks = join(device)
    if ranks.count == 1:
        yield ranks
        return
    main = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGTERM, _interrupt) if main else None
    try:
        if device.type == "cuda":
            _take_gpu()
        yield ranks
        ranks.leave()
    except KeyboardInterrupt:
        try:
            ranks.explain()
        finally:
            ranks.stop(INTERRUPTED)
        raise
    except RankLost:
        ranks.stop("")
        raise
    except BaseException as e:
        ranks.stop(str(e) or type(e).__name__)
        raise
    finally:
        if main:
            signal.signal(signal.SIGTERM, previous)


def _take_gpu() -> None:
    """Make the GPU of this process's local rank the one that ``cuda`` means."""
    local, found = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= found:
        raise InputError(
            f"Local rank {local} has no GPU of its own, because this machine has {found}; lower --nproc-per-node, or "
            "use --device cpu."
        )
    torch.cuda.set_device(local)


def _interrupt(_number: int, _frame: Any) -> None:
    raise KeyboardInterrupt
