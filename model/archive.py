"""Read the tensors of a TorchScript archive, as OpenAI ships CLIP, without running any of its code.

An archive is a zip file: NAME/data.pkl pickles the modules, NAME/data/N hold the bytes of their tensors, NAME/code is
the program. Only the first two are read, by an unpickler that knows nothing but tensors, containers and empty modules.
"""
import math
import pickle
import zipfile
from collections import OrderedDict

import torch

DTYPES = {"FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
          "DoubleStorage": torch.float64, "LongStorage": torch.int64, "IntStorage": torch.int32,
          "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool}
NO_WEIGHTS = ("attn_mask",)     # tensors of modules that are neither parameters nor buffers


class Module:
    """Stands for any class of the archive: takes attributes, does nothing."""

    def __setstate__(self, attributes):
        self.__dict__.update(attributes if isinstance(attributes, dict) else {})


class TensorUnpickler(pickle.Unpickler):
    """Unpickles modules of tensors and refuses everything else. Args: file: of data.pkl; read: record name -> bytes."""

    def __init__(self, file, read):
        super().__init__(file)
        self.read = read

    def find_class(self, module, name):
        """Return what a name of the archive may stand for. Raises: UnpicklingError: anything else."""
        if module.split(".")[0] == "__torch__":
            return Module
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        known = {("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor, ("collections", "OrderedDict"): OrderedDict}
        if (module, name) in known:
            return known[module, name]
        raise pickle.UnpicklingError(f"{module}.{name} is no part of a module of tensors")

    def persistent_load(self, reference):
        """Return the storage that ("storage", dtype, record, device, length) names, as a flat tensor on the host."""
        kind, dtype, record, _, length = reference
        data = bytearray(self.read(f"data/{record}"))
        if kind != "storage" or not isinstance(dtype, torch.dtype) or len(data) != length * dtype.itemsize:
            raise pickle.UnpicklingError(f"the record data/{record} is not what data.pkl says of it")
        return torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)


def _rebuild_tensor(storage, offset, size, stride, *_):
    if math.prod(size) > len(storage):      # a stride of 0 can make gigabytes of one number
        raise pickle.UnpicklingError(f"a tensor of shape {tuple(size)} has {len(storage)} numbers")
    return torch.as_strided(storage, size, stride, offset).clone()


def is_torchscript(path):
    """Tell whether a file is a TorchScript archive: a zip file with a program in it."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.count("/") > 1 and name.split("/")[1] == "code" for name in archive.namelist())


def read_torchscript(path):
    """Return the tensors of an archive by their names in its modules, as in {"visual.conv1.weight": ...}.

    Raises: many kinds of exceptions: the archive is damaged, or holds more than modules of tensors.
    """
    with zipfile.ZipFile(path) as archive:
        root = next(name for name in archive.namelist() if name.endswith("/data.pkl")).removesuffix("data.pkl")

        def read(name):
            record = archive.getinfo(root + name)
            if record.compress_type != zipfile.ZIP_STORED:      # a few bytes can claim to be gigabytes
                raise ValueError(f"its record {name} is compressed")
            return archive.read(record)

        with archive.open(root + "data.pkl") as file:
            return dict(_tensors(TensorUnpickler(file, read).load()))


def _tensors(module, prefix="", depth=0):
    """Yield (name, tensor) of a module and those in it."""
    if depth > 50:
        raise ValueError("its modules lie in one another without end")
    for name, value in vars(module).items():
        if isinstance(value, torch.Tensor) and name not in NO_WEIGHTS:
            yield prefix + name, value
        elif isinstance(value, Module):
            yield from _tensors(value, f"{prefix}{name}.", depth + 1)
