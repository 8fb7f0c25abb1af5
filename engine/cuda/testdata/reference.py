"""reference.py OUT: small checkpoints of every family and what transformers makes of them, for TestTransformers.

OUT/<family>/ is fixtures/tinymodel/<family> trained for a minute to go on with the text of docs/, a token a character: random weights give flat
distributions, whose likeliest token is a matter of rounding. It is made once; then OUT/<family>.bin: i32 sequences, length, vocabulary; i32 tokens
[sequences][length]; logits after each token, f32 [sequences][length][vocabulary], computed in float32 and again in bfloat16; how near the float32 model
was to taking another expert, f32 [sequences][length]: the least difference, over the layers, of the router's logits of the last expert taken and the
first left out, infinite where there are no experts. On the GPU if there is one. Run from the repository's root:
python3 engine/cuda/testdata/reference.py /tmp/reference
"""
import collections
import glob
import os
import sys

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM

FAMILIES = ["llama", "llama-tied", "mistral", "mistral-window", "qwen2", "qwen2-yarn", "qwen3", "qwen3-moe"]
SEQUENCES, LENGTH = 8, 250
STEPS, BATCH, RATE = 600, 16, 4e-3

out = sys.argv[1]
if int(transformers.__version__.split(".")[0]) < 5:
    sys.exit(f"transformers {transformers.__version__} does not read rope_parameters: want 5 or newer")
torch.backends.cuda.matmul.allow_tf32 = False
device = "cuda" if torch.cuda.is_available() else "cpu"


def corpus(vocabulary):
    """The text of docs/ as tokens: the commonest characters have one each, the others share 0."""
    text = "".join(open(f, encoding="utf-8").read() for f in sorted(glob.glob("docs/**/*.md", recursive=True)))
    common = [c for c, _ in collections.Counter(text).most_common(vocabulary - 1)]
    ids = {c: i + 1 for i, c in enumerate(common)}
    return torch.tensor([ids.get(c, 0) for c in text], device=device)


def pieces(ids, n, length, random):
    return torch.stack([ids[a:a + length] for a in torch.randint(0, len(ids) - length, (n,), generator=random)])


def train(family, path):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(os.path.join("fixtures", "tinymodel", family), dtype=torch.float32, attn_implementation="eager").to(device)
    ids, random = corpus(model.config.vocab_size), torch.Generator().manual_seed(1)
    length = min(128, model.config.max_position_embeddings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = RATE * min(1, (step + 1) / 30) * (1 - step / STEPS)
        x = pieces(ids, BATCH, length + 1, random)
        loss = torch.nn.functional.cross_entropy(model(x[:, :-1]).logits.flatten(0, 1), x[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    print(f"{family}: loss {loss.item():.2f} nats a character", flush=True)
    model.to(torch.bfloat16).save_pretrained(path)
    length = min(LENGTH, model.config.max_position_embeddings)
    np.save(os.path.join(path, "tokens.npy"), pieces(ids, SEQUENCES, length, random).cpu().numpy().astype(np.int32))


def margins(model, run):
    """run's result, and what it leaves between each token's last expert taken and the first left out."""
    least = torch.tensor(float("inf"), device=device)

    def see(module, _, out):
        nonlocal least
        best = out[0].float().topk(module.top_k + 1).values
        least = torch.minimum(least, best[:, -2] - best[:, -1])

    hooks = [m.register_forward_hook(see) for n, m in model.named_modules() if n.endswith("mlp.gate")]
    result = run()
    for hook in hooks:
        hook.remove()
    return result, least


def reference(family, path):
    logits, least, tokens = [], [], np.load(os.path.join(path, "tokens.npy"))
    for dtype in [torch.float32, torch.bfloat16]:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="eager").to(device).eval()
        with torch.no_grad():
            got, margin = margins(model, lambda: model(torch.tensor(tokens, dtype=torch.long, device=device)).logits.float())
            logits.append(got)
            least.append(margin.expand(tokens.size))
    with open(os.path.join(out, family + ".bin"), "wb") as f:
        f.write(np.array([*tokens.shape, model.config.vocab_size], dtype=np.int32).tobytes())
        f.write(tokens.tobytes())
        for l in [*logits, least[0]]:
            f.write(np.ascontiguousarray(l.cpu().numpy(), dtype=np.float32).tobytes())
    p, q = (torch.log_softmax(l, -1) for l in logits)
    best, other = p.argmax(-1), q.argmax(-1)
    print(f"{family} on {device}: bfloat16 against float32: KL {(p.exp() * (p - q)).sum(-1).mean().item():.2e}, "
          f"top-1 {100 * (best == other).float().mean().item():.2f} %", flush=True)


os.makedirs(out, exist_ok=True)
for family in FAMILIES:
    path = os.path.join(out, family)
    if not os.path.exists(os.path.join(path, "tokens.npy")):
        train(family, path)
    reference(family, path)
