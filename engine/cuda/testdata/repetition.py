"""repetition.py URL > repetition.json: what the model of a running server says, greedily, to the texts with repetition, as token ids.

repetition.json is of SmolLM2-135M-Instruct (go run ./fixtures/fetch/cmd/fetch; launch_server --model-path
fixtures/models/SmolLM2-135M-Instruct.Q4_1.gguf --device cpu).
"""
import json
import sys
import urllib.request


def post(path, body):
    request = urllib.request.Request(sys.argv[1] + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request))


lines = []
for line in open("fixtures/datasets/testdata/repetition.jsonl", encoding="utf-8"):
    text = json.loads(line)["conversations"][0]["value"]
    prompt = post("/tokenize", {"prompt": text})["tokens"]
    said = post("/generate", {"input_ids": prompt, "sampling_params": {"temperature": 0, "max_new_tokens": 128, "ignore_eos": True}})["output_ids"]
    lines.append(json.dumps({"prompt": prompt, "output": said}, separators=(",", ":")))
print("[" + ",\n".join(lines) + "]")
