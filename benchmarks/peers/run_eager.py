"""How far a peer's own transformers is from ours on one checkpoint, before anything is exported.

python run_eager.py CHECKPOINT REFERENCE.npz      # prints max |logit - reference|
"""

from __future__ import annotations

import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from transformers import AutoModelForCausalLM


def main() -> None:
    """Print the one number."""
    checkpoint, reference = sys.argv[1:]
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    with np.load(reference) as kept, torch.inference_mode():
        logits = model(torch.from_numpy(kept["tokens"])[None]).logits[0].numpy()
        print(float(np.abs(logits - kept["logits"]).max()))


if __name__ == "__main__":
    main()
