"""Drives a server with OpenAI's official Python client: python openai_python.py http://127.0.0.1:30000"""
import asyncio
import sys

import openai

base = sys.argv[1]
client = openai.OpenAI(base_url=base + "/v1", api_key="none", max_retries=0)
model = client.models.list().data[0].id
assert client.models.retrieve(model).id == model
hello = [{"role": "user", "content": "Say hello"}]

# Choices, seeds and log probabilities.
r = client.chat.completions.create(model=model, messages=hello, max_tokens=8, n=2, logprobs=True, top_logprobs=3, seed=7)
assert len(r.choices) == 2, r
assert r.usage.completion_tokens == sum(len(c.logprobs.content) for c in r.choices), r

# A stream gives what the whole answer holds.
text, usage = "", None
stream = client.chat.completions.create(
    model=model, messages=hello, max_tokens=8, temperature=0, stream=True, stream_options={"include_usage": True})
for chunk in stream:
    if chunk.choices:
        text += chunk.choices[0].delta.content or ""
    usage = chunk.usage or usage
whole = client.chat.completions.create(model=model, messages=hello, max_tokens=8, temperature=0)
assert text == whole.choices[0].message.content, (text, whole)
assert usage.completion_tokens == whole.usage.completion_tokens, (usage, whole)

# Completions: a batch of prompts, echo, token ids, fields beyond OpenAI's.
r = client.completions.create(model=model, prompt=["One", "Two"], max_tokens=4, echo=True, logprobs=2)
assert r.choices[1].text.startswith("Two") and r.choices[0].logprobs.token_logprobs[0] is None, r
r = client.completions.create(
    model=model, prompt=[1, 2, 3], max_tokens=4, extra_body={"top_k": 5, "min_p": 0.05, "ignore_eos": True})
assert r.usage.completion_tokens == 4, r

# Refusals reach the client as its own exceptions.
for bad, status in (({"model": "gpt-4"}, 404), ({"max_tokens": -1}, 400), ({"n": 0}, 400), ({"top_p": 7}, 400)):
    try:
        client.chat.completions.create(**{"model": model, "messages": hello, **bad})
        raise SystemExit(f"accepted {bad}")
    except openai.APIStatusError as e:
        assert e.status_code == status and e.body["message"], (bad, e)


async def many(n):
    c = openai.AsyncOpenAI(base_url=base + "/v1", api_key="none", max_retries=0)
    ask = (c.completions.create(model=model, prompt=f"n {i}", max_tokens=5, extra_body={"ignore_eos": True}) for i in range(n))
    for r in await asyncio.gather(*ask):
        assert r.usage.completion_tokens == 5, r


asyncio.run(many(100))
print("openai", openai.__version__, "ok")
