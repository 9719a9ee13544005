"""Asks accelerate for shards of a small model on the CPU, and notes what it makes of it.

Argument: a name for the notes of each process.
"""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from recipes.lib.distributed.process_exit import end, leave_group

accelerator = Accelerator()
model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model, optimizer = accelerator.prepare(model, optimizer)
own = [p.to_local() if hasattr(p, "to_local") else p for p in model.parameters()]
told = {
    "processes": accelerator.num_processes,
    "wrapped": type(model).__name__,
    "numbers": sum(tensor.numel() for tensor in own),
}
Path(f"{sys.argv[1]}{os.environ['RANK']}.json").write_text(json.dumps(told))
leave_group()
end(0)
