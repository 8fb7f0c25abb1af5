"""reference.py OUT: what transformers makes of the tiny checkpoints, for TestTransformers.

For each family OUT/<family>.bin: i32 sequences, length, vocabulary; i32 tokens [sequences][length]; then logits after each token, f32
[sequences][length][vocabulary], computed in float32 and again in bfloat16. On the GPU if there is one.
Run from the repository's root: python3 engine/cuda/testdata/reference.py /tmp/reference
"""
import os
import sys

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM

out = sys.argv[1]
os.makedirs(out, exist_ok=True)
if int(transformers.__version__.split(".")[0]) < 5:
    sys.exit(f"transformers {transformers.__version__} does not read rope_parameters: want 5 or newer")
torch.backends.cuda.matmul.allow_tf32 = False
device = "cuda" if torch.cuda.is_available() else "cpu"
sequences, length = 8, 250
for family in ["llama", "llama-tied", "mistral", "mistral-window", "qwen2", "qwen2-yarn", "qwen3", "qwen3-moe"]:
    path = os.path.join("fixtures", "tinymodel", family)
    logits = []
    for dtype in [torch.float32, torch.bfloat16]:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="eager").to(device).eval()
        vocabulary = model.config.vocab_size
        tokens = np.random.default_rng(1).integers(0, vocabulary, (sequences, length), dtype=np.int32)
        with torch.no_grad():
            logits.append(model(torch.tensor(tokens, dtype=torch.long, device=device)).logits.float().cpu().numpy())
    with open(os.path.join(out, family + ".bin"), "wb") as f:
        f.write(np.array([sequences, length, vocabulary], dtype=np.int32).tobytes())
        f.write(tokens.tobytes())
        for l in logits:
            f.write(np.ascontiguousarray(l, dtype=np.float32).tobytes())
    p, q = (torch.log_softmax(torch.tensor(l), -1) for l in logits)
    print(f"{family} on {device}: KL(float32 || bfloat16) {(p.exp() * (p - q)).sum(-1).mean().item():.2e}, rms logit {logits[0].std():.3g}")
