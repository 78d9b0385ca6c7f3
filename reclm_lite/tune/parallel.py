"""Several processes that tune one adapter together: what they must agree on, through accelerate.

`accelerate launch --num_processes N` starts the processes; each holds the whole model and takes its own share of every
batch. Gradients are summed by hand after the last micro-batch, for no wrapper around the model knows which adapter a
forward pass went through. With one process nothing here does anything, and accelerate is not imported.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """The processes of a run. rank: this one's number, 0 to world - 1. accelerator: None where there is but one
    process."""

    rank: int = 0
    world: int = 1
    accelerator: Any = None

    @classmethod
    def open(cls, device: str = "auto") -> "Group":
        """The group that this process was launched in. device: "cpu" for processes that talk without a GPU."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=device == "cpu")
        return cls(accelerator.process_index, accelerator.num_processes, accelerator)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part of what all hold: every world-th, from its own number on."""
        return items[self.rank :: self.world]

    def sum(self, values: Tensor | float) -> Tensor:
        """The sum over processes, the same in all of them. values: of one shape everywhere; a number is summed in
        float64."""
        values = values if isinstance(values, Tensor) else torch.tensor(values, dtype=torch.float64)
        if self.accelerator is None:
            return values
        # NCCL sums only what lies on its GPU.
        return self.accelerator.reduce(values.to(self.accelerator.device), "sum").to(values.device)

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace every gradient by its sum over processes: for losses divided by the count of the whole batch."""
        if self.accelerator is None:
            return
        for parameter in parameters:
            if parameter.grad is None:  # of no use to this process's share; the others wait for it all the same
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.copy_(self.sum(parameter.grad))

    def gather(self, items: Sequence[T]) -> list[T]:
        """What all processes hold, in the order that `share` took apart where `items` is a share; picklable things."""
        if self.accelerator is None:
            return list(items)
        from accelerate.utils import gather_object

        numbered = gather_object([(i, self.rank, item) for i, item in enumerate(items)])
        return [item for _, _, item in sorted(numbered, key=lambda entry: entry[:2])]

    def barrier(self) -> None:
        """Until all processes are here, so that none reads a file before it is written."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()
