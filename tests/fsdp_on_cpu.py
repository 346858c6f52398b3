"""The command line under FSDP2 in processes on the CPU (gloo), which accelerate offers to
accelerators only.
"""

import os

from accelerate import PartialState
from accelerate.utils import DistributedType

os.environ["ACCELERATE_USE_CPU"] = "true"
os.environ.setdefault("ACCELERATE_USE_FSDP", "true")
os.environ.setdefault("FSDP_VERSION", "2")
os.environ.setdefault("FSDP_STATE_DICT_TYPE", "FULL_STATE_DICT")
os.environ |= {
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}
stock = PartialState.__init__


def as_an_accelerator(self, *arguments, **options):
    stock(self, *arguments, **options)
    if self._shared_state["distributed_type"] == DistributedType.MULTI_CPU:
        self._shared_state["distributed_type"] = DistributedType.MULTI_XPU


PartialState.__init__ = as_an_accelerator

from abft.cli.app import main  # noqa: E402

main()
