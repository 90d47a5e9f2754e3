"""What every trainer test needs."""

from __future__ import annotations

import torch

# Tests are small and many, machines few: threads that wait for each other cost more than they bring.
torch.set_num_threads(1)
