"""PyTorch timed on the cases of ../bench.ts, a file of JSON given as the first argument; one JSON object a line.

On CUDA where there is a device, else on the CPU; in f32 and bf16, as it is and through torch.compile where that works.
The models are those of src/models/, written down once more with PyTorch's own parts.
"""

import json
import math
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
torch.backends.cudnn.allow_tf32 = False  # f32 is f32, as it is for products by default


def wait():
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def milliseconds(fn):
    """Median of several runs, short ones in batches."""

    def batch(n):
        wait()
        began = time.perf_counter()
        for _ in range(n):
            fn()
        wait()
        return (time.perf_counter() - began) / n * 1e3

    batch(2)
    single = batch(1)
    n = max(1, min(400, math.ceil(100 / max(single, 0.01))))
    return statistics.median(batch(n) for _ in range(3 if single > 400 else 5))


def draw(*shape, dtype):
    return torch.rand(*shape, device=DEVICE, dtype=dtype) - 0.5


def with_gradients(fn, inputs, dy):
    """fn and the gradients of all inputs, given the gradient of its result."""
    for x in inputs:
        x.requires_grad_()

    def run(*_):
        return torch.autograd.grad(fn(*inputs), inputs, dy)

    return run


class Vit(nn.Module):
    """DINOv2: see src/models/vit.ts."""

    def __init__(self, c):
        super().__init__()
        C, tokens = c["C"], (c["image"] // c["patch"]) ** 2
        self.heads = c["NH"]
        self.patch = nn.Conv2d(3, C, c["patch"], c["patch"])
        self.cls = nn.Parameter(torch.zeros(1, 1, C))
        self.positions = nn.Parameter(torch.zeros(1, tokens + 1, C))
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(C, 1e-6),
                    "q": nn.Linear(C, C),
                    "k": nn.Linear(C, C),
                    "v": nn.Linear(C, C),
                    "out": nn.Linear(C, C),
                    "norm2": nn.LayerNorm(C, 1e-6),
                    "fc1": nn.Linear(C, 4 * C),
                    "fc2": nn.Linear(4 * C, C),
                }
            )
            for _ in range(c["depth"])
        )
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(C)) for _ in range(2 * c["depth"]))
        self.norm = nn.LayerNorm(C, 1e-6)

    def forward(self, x):
        y = self.patch(x).flatten(2).transpose(1, 2)
        B, _, C = y.shape
        y = torch.cat([self.cls.expand(B, -1, -1), y], 1) + self.positions
        for i, b in enumerate(self.blocks):
            z = b["norm1"](y)
            q, k, v = (b[n](z).view(B, -1, self.heads, C // self.heads).transpose(1, 2) for n in "qkv")
            z = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, -1, C)
            y = y + b["out"](z) * self.scales[2 * i]
            y = y + b["fc2"](F.gelu(b["fc1"](b["norm2"](y)))) * self.scales[2 * i + 1]
        return self.norm(y)[:, 1:]


class Dit(nn.Module):
    """LightningDiT: see src/models/dit.ts."""

    def __init__(self, c):
        super().__init__()
        C, tokens = c["C"], c["side"] ** 2
        hidden = int(4 * C * 2 / 3)
        self.heads, self.hidden = c["NH"], hidden
        self.embed = nn.Linear(c["channels"], C)
        self.time = nn.Sequential(nn.Linear(256, C), nn.SiLU(), nn.Linear(C, C))
        self.classes = nn.Embedding(c["classes"] + 1, C)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.RMSNorm(C, 1e-6),
                    "qkv": nn.Linear(C, 3 * C),
                    "proj": nn.Linear(C, C),
                    "norm2": nn.RMSNorm(C, 1e-6),
                    "w12": nn.Linear(C, 2 * hidden),
                    "w3": nn.Linear(hidden, C),
                    "modulation": nn.Linear(C, 6 * C),
                }
            )
            for _ in range(c["depth"])
        )
        self.norm = nn.RMSNorm(C, 1e-6)
        self.modulation = nn.Linear(C, 2 * C)
        self.last = nn.Linear(C, c["channels"])
        self.register_buffer("positions", torch.rand(1, tokens, C))
        for name in ("cos", "sin"):
            self.register_buffer(name, torch.rand(tokens, C // self.heads))
        self.register_buffer("frequencies", torch.exp(torch.arange(128) * (-math.log(10000) / 128)))

    def turn(self, x):
        a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
        return x * self.cos + torch.stack((-b, a), -1).flatten(-2) * self.sin

    def forward(self, x, t, labels):
        y = self.embed(x) + self.positions
        B, T, C = y.shape
        angles = t[:, None] * self.frequencies
        features = torch.cat((angles.cos(), angles.sin()), 1)
        condition = F.silu(self.time(features) + self.classes(labels))
        for b in self.blocks:
            shift1, scale1, gate1, shift2, scale2, gate2 = b["modulation"](condition)[:, None].chunk(6, -1)
            z = b["qkv"](b["norm1"](y) * (1 + scale1) + shift1)
            q, k, v = z.view(B, T, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
            z = F.scaled_dot_product_attention(self.turn(q), self.turn(k), v).transpose(1, 2).reshape(B, T, C)
            y = y + gate1 * b["proj"](z)
            a, z = b["w12"](b["norm2"](y) * (1 + scale2) + shift2).chunk(2, -1)
            y = y + gate2 * b["w3"](F.silu(a) * z)
        shift, scale = self.modulation(condition)[:, None].chunk(2, -1)
        return self.last(self.norm(y) * (1 + scale) + shift)


def training(c, dtype, wrap):
    """One step: noise, loss, gradients, clipping, AdamW and the weight average. Weights stay f32 (autocast for bf16)."""
    model = Dit(c).to(DEVICE)
    forward = wrap(model)
    parameters = list(model.parameters())
    averages = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, 1e-3, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    x1 = draw(c["B"], c["side"] ** 2, c["channels"], dtype=torch.float32)
    labels = torch.zeros(c["B"], dtype=torch.long, device=DEVICE)

    def step():
        x0 = torch.randn_like(x1)
        t = torch.sigmoid(torch.randn(c["B"], 1, 1, device=DEVICE))
        v = x1 - x0
        with torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == torch.bfloat16):
            y = forward(x0 + t * v, t.flatten(), labels)
        y = y.float()
        loss = F.mse_loss(y, v) + (1 - F.cosine_similarity(y, v, dim=-1)).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        torch._foreach_lerp_(averages, parameters, 0.01)

    return torch.enable_grad()(step)


def rows(c, dtype):
    x, w, b = draw(c["R"], c["C"], dtype=dtype), draw(c["C"], dtype=dtype), draw(c["C"], dtype=dtype)
    size = (c["C"],)
    return {
        "layer norm": (lambda x, w, b: F.layer_norm(x, size, w, b, 1e-6), [x, w, b]),
        "rms norm": (lambda x, w: F.rms_norm(x, size, w, 1e-6), [x, w]),
        "softmax": (lambda x: F.softmax(x, -1), [x]),
        "add": (torch.add, [x, draw(c["R"], c["C"], dtype=dtype)]),
        "silu": (F.silu, [x]),
    }[c["op"]]


def make(c, dtype, wrap):
    """What runs a case once; None where it has no counterpart here."""
    op = c["op"]
    if op == "gemm":
        ta, tb = (letter == "T" for letter in c["layout"])
        M, N, K = c["M"], c["N"], c["K"]
        a = draw(K, M, dtype=dtype).T if ta else draw(M, K, dtype=dtype)
        b = draw(N, K, dtype=dtype).T if tb else draw(K, N, dtype=dtype)
        fn = wrap(torch.matmul)
        return lambda: fn(a, b)
    if op == "conv":
        last = torch.channels_last
        x = draw(c["B"], c["C"], c["H"], c["W"], dtype=dtype).to(memory_format=last)
        w = draw(c["Co"], c["C"], 3, 3, dtype=dtype).to(memory_format=last)
        dy = draw(c["B"], c["Co"], c["H"], c["W"], dtype=dtype).to(memory_format=last)
        if c["wrt"] == "y":
            fn = wrap(lambda x, w: F.conv2d(x, w, padding=1))
            return lambda: fn(x, w)
        mask = [c["wrt"] == "x", c["wrt"] == "weight", False]
        back = torch.ops.aten.convolution_backward
        return lambda: back(dy, x, w, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, mask)
    if op == "attention":
        shape = (c["B"], c["NH"], c["T"], c["HS"])
        inputs = [draw(*shape, dtype=dtype) for _ in range(3)]
        fn = wrap(F.scaled_dot_product_attention)
        return (lambda: fn(*inputs)) if c["pass"] == "forward" else with_gradients(fn, inputs, draw(*shape, dtype=dtype))
    if op in ("layer norm", "rms norm", "softmax", "add", "silu"):
        plain, inputs = rows(c, dtype)
        fn = wrap(plain)
        if c["pass"] == "forward":
            return lambda: fn(*inputs)
        return with_gradients(fn, inputs, draw(c["R"], c["C"], dtype=dtype))
    if op == "group norm":
        x = draw(c["B"], c["C"], c["H"], c["W"], dtype=dtype).to(memory_format=torch.channels_last)
        w, b = draw(c["C"], dtype=dtype), draw(c["C"], dtype=dtype)
        fn = wrap(lambda x, w, b: F.silu(F.group_norm(x, c["groups"], w, b, 1e-6)))
        return lambda: fn(x, w, b)
    if op == "adamw":
        if dtype != torch.float32:
            return None
        p = nn.Parameter(draw(c["n"], dtype=dtype))
        p.grad = draw(c["n"], dtype=dtype)
        average = p.detach().clone()
        optimizer = torch.optim.AdamW([p], 1e-3, fused=True)

        def update():
            nn.utils.clip_grad_norm_([p], 1.0)
            optimizer.step()
            average.lerp_(p.detach(), 0.01)

        return update
    if op == "vit":
        model = Vit(c).to(DEVICE, dtype)
        fn, x = wrap(model), draw(c["B"], 3, c["image"], c["image"], dtype=dtype)
        if c["pass"] == "forward":
            return lambda: fn(x)
        parameters = list(model.parameters())

        def gradients():
            y = fn(x)
            return torch.autograd.grad(y, parameters, y.detach())

        return torch.enable_grad()(gradients)
    if op == "dit training":
        return training(c, dtype, wrap)
    if op == "dit sampling":
        model = Dit(c).to(DEVICE, dtype)
        fn, B = wrap(model), c["B"]
        x = draw(B, c["side"] ** 2, c["channels"], dtype=dtype)
        labels = torch.tensor([0] * B + [c["classes"]] * B, device=DEVICE)

        def draw_step():
            both = fn(torch.cat((x, x)), torch.full((2 * B,), 0.5, device=DEVICE, dtype=dtype), labels)
            conditional, without = both.chunk(2)
            return x + 0.02 * (without + 4 * (conditional - without))

        return draw_step
    return None


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        cases = [c for c in json.load(file) if c["precision"] == "f32"]
    compile_works = hasattr(torch, "compile")
    for variant in ("eager", "compiled"):  # compiling takes minutes: last
        for dtype, precision in ((torch.float32, "f32"), (torch.bfloat16, "bf16")):
            for c in cases:
                # A single op has nothing to be merged with.
                whole = c["op"] in ("vit", "dit training", "dit sampling", "group norm")
                if variant == "compiled" and not (whole and compile_works):
                    continue
                wrap = (lambda f: torch.compile(f)) if variant == "compiled" else (lambda f: f)
                train = c["op"] == "dit training" or c.get("pass") == "gradients"
                try:
                    with torch.set_grad_enabled(train):
                        fn = make(c, dtype, wrap)
                        ms = milliseconds(fn) if fn else None
                except Exception as error:  # what it cannot do has no line
                    print(f"{c['title']} ({precision}, {variant}): {str(error).splitlines()[0]}", file=sys.stderr)
                    if variant == "compiled" and "ompil" in type(error).__name__ + str(error):
                        compile_works = False
                    continue
                if ms is not None:
                    line = {"case": c["title"], "ms": ms, "variant": f"{precision} {variant}"}
                    print(json.dumps(line, separators=(",", ":")), flush=True)


main()
