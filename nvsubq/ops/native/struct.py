"""A struct of the C interface in memory: packed once for each signature, then only its addresses change."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from nvsubq.ops.native import library
from nvsubq.ops.native.library import Layout
from nvsubq.ops.native.walking import Tables

Strides = tuple[int, ...]


class Struct:
    """A packed struct, and where its parts lie, counted in words of 8 bytes.

    Args:
        name: of the op.
        layout: of the struct.
        function: of the library that takes it.
        scalars: by name; those that are not given are 0.
        fields: of the tensors that are there, by name, as `library.describe` gives them.
        names: of the tensors of `run`, in its order.
        work: states or taps that are visited, to decide how many threads are worth it.
        device: where the tensors are.
    """

    def __init__(
        self,
        name: str,
        layout: Layout,
        function: str,
        scalars: Mapping[str, int],
        fields: Mapping[str, tuple[int, ...]],
        names: list[str],
        work: int,
        device: torch.device,
    ) -> None:
        packer = layout.packer()
        self.name, self.function, self.work, self.device = name, function, work, device
        self.library = library.library(device.type)
        self.call = getattr(self.library, function)
        self.index: int | None = None  # of a CUDA device
        if device.type == "cuda":
            self.index = torch.cuda.current_device() if device.index is None else device.index
            scalars = {**scalars, "device": self.index}
        self.buffer = ctypes.create_string_buffer(packer.size)
        numbers = [scalars.get(name, 0) for name in layout.scalars]
        flat = [value for name in layout.tensors for value in fields.get(name, library.ABSENT)]
        packer.pack_into(self.buffer, 0, packer.size, library.ABI, *numbers, 0, 0, 0, 0, 0, *flat)
        self.words = memoryview(self.buffer).cast("B").cast("Q")
        scalar = {name: 1 + i for i, name in enumerate(layout.scalars)}
        self.threads, self.level = scalar["threads"], scalar["level"]
        self.workspace = 1 + len(layout.scalars)  # address, bytes; then comes the stream
        self.stream = self.workspace + 2
        self.saved = self.workspace + 3
        first = self.saved + 2
        self.place = {name: first + 6 * i for i, name in enumerate(layout.tensors)}
        self.given = [(i, self.place[n]) for i, n in enumerate(names) if fields.get(n, library.ABSENT)[-1]]
        # Of workspace, by threads, level and whether what `backward` needs lies elsewhere, to be kept.
        self.bytes: dict[tuple[int, int, bool], int] = {}
        self.seen: Mapping[str, Callable[[Strides], Strides]] = {}

    def set_strides(self, name: str, tensor: Tensor | None) -> None:
        """Strides of a tensor that differ from call to call."""
        if tensor is not None:
            seen = self.seen.get(name)
            strides = tensor.stride() if seen is None else seen(tensor.stride())
            place = self.place[name] + 1
            for i, stride in enumerate(strides):
                self.words[place + i] = stride

    def run(self, tensors: list[Tensor | None], tables: Tables, saved: Tensor | None) -> None:
        """Put the addresses in and call the library.

        Raises:
            RuntimeError: the library refuses the call; its message is passed on.
        """
        words = self.words
        for i, place in self.given:
            words[place] = tensors[i].data_ptr()  # type: ignore[union-attr]
        for name, table in tables.named.items():
            words[self.place[name]] = table.data_ptr()
        if self.index is None:
            threads, level = library.threads(self.work), library.forced_level
            words[self.threads], words[self.level] = threads, level
        else:
            threads = level = 0
            words[self.stream] = library.current_stream(self.index)  # type: ignore[misc]
        # Both are set in every call: what the last one left there may be gone.
        words[self.saved] = 0 if saved is None else saved.data_ptr()
        words[self.saved + 1] = 0 if saved is None else saved.nbytes
        kind = threads, level, saved is not None
        size = self.bytes.get(kind)
        if size is None:
            size = self.bytes[kind] = self._ask()
        # The memory goes back when this returns, on a CUDA device to what comes later on the same stream.
        workspace = torch.empty(size, dtype=torch.uint8, device=self.device) if size else None
        words[self.workspace] = 0 if workspace is None else workspace.data_ptr()
        words[self.workspace + 1] = size
        if self.call(self.buffer):
            raise RuntimeError(f"{self.function}: {self.library.nvsubq_last_error().decode()}.")

    def _ask(self) -> int:
        function = f"nvsubq_{self.name}_workspace"
        size: int = getattr(self.library, function)(self.buffer)
        if size < 0:
            raise RuntimeError(f"{function}: {self.library.nvsubq_last_error().decode()}.")
        return size
