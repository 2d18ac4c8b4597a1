"""Bring what was measured to the host: one copy a recorded step, without waiting for the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Parcel:
    """Tensors on their way to the host; on the CPU they are there already."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = [(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors]
        self._local = [tensor.numpy() for tensor in tensors if tensor.is_cpu]
        self._hosts: dict[torch.device, Tensor] = {}
        self._arrivals: list[Any] = []
        if len(self._local) < len(tensors):
            for device in dict.fromkeys(tensor.device for tensor in tensors if not tensor.is_cpu):
                self._send([tensor for tensor in tensors if tensor.device == device], device)

    def _send(self, tensors: list[Tensor], device: torch.device) -> None:
        packed = torch.cat([tensor.contiguous().view(-1).view(torch.uint8) for tensor in tensors])
        host = torch.empty(packed.shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
        host.copy_(packed, non_blocking=True)
        self._hosts[device] = host
        if device.type == "cuda":
            arrival = torch.cuda.Event()
            arrival.record(torch.cuda.current_stream(device))
            self._arrivals.append(arrival)

    @property
    def here(self) -> bool:
        """Return whether opening the parcel does not wait."""
        return not self._arrivals

    def open(self) -> list[NDArray[Any]]:
        """Return the tensors as arrays, in order; waits for those that are still under way."""
        for arrival in self._arrivals:
            arrival.synchronize()
        if not self._hosts:
            return self._local
        offsets, arrays, local = dict.fromkeys(self._hosts, 0), [], iter(self._local)
        for shape, dtype, device in self._tensors:
            if device.type == "cpu":
                arrays.append(next(local))
                continue
            size = shape.numel() * dtype.itemsize
            part = self._hosts[device][offsets[device] : offsets[device] + size]
            offsets[device] += size
            kind = {torch.bool: np.bool_, torch.float64: np.float64, torch.float32: np.float32}[dtype]
            arrays.append(np.frombuffer(part.numpy().tobytes(), kind).reshape(shape))
        return arrays
