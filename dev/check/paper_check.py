#!/usr/bin/env python3
"""dev/paper/cnn.c and lstm.c against PyTorch: python3 dev/check/paper_check.py

Compiles the fp32 programs (CC, default cc). They write their initial weights, the loss and gradients of the first batch, and all
batches. Here are the same networks of PyTorch's own convolutions, batch normalization and torch.nn.LSTM, in float64. Sources of
different lengths are packed sequences here, while lstm.c puts padding before them.
  gradients  loss and every gradient of the first batch agree to a few units of fp32
  training   from the same weights on the same batches; losses of ten steps on the way agree, and the accuracy of cnn.c at the end
Each kind of check is shown to fail with planted faults. Needs NumPy and PyTorch. Exit status: 0 all passed, 1 something failed.
"""

import math
import os
import re
import shlex
import subprocess
import sys
import tempfile

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from check_references import FLAGS, HERE, References, read_arrays

STEPS, LR, BETAS, EPS, DECAY, CLIP = 100, 5e-3, (0.9, 0.95), 1e-8, 0.05, 1.0
GRADIENT_LIMIT, LOSS_LIMIT, CURVE_LIMIT = 5e-6, 5e-7, 3e-5  # relative, of the largest; relative; nats
CNN_CURVE_LIMIT = 0.01  # ReLUs that switch in one of the two drive them apart
# options, time positions of the decoder and of the encoder
CONFIGS = {
    "lm": ("--task lm --hidden 36 --layers 1 --batch 7 --time 33", 33, 0),
    "lm of two layers": ("--task lm --hidden 19 --layers 2 --batch 35 --time 12", 12, 0),
    "numbers": ("--task numbers --hidden 24 --layers 1 --batch 10", 7, 72),
    "dates, two layers": ("--task dates --hidden 33 --layers 2 --batch 9", 11, 28),
}
GRADIENT_FAULTS = {"cnn": ["epsilon", "relu", "shortcut"], "lm": ["gates", "forget", "target"], "dates, two layers": ["gates", "mask", "attention", "state", "target"]}
TRAINING_FAULTS = ["decay", "clip", "schedule"]


class Lstm(torch.nn.Module):
    """The network of a dump. `named` has its parameters under the program's names."""

    def __init__(self, dump, H, layers, is_pair, fault):
        super().__init__()
        self.fault, self.H, self.named = fault, H, {}
        V = len(dump["weight.head_bias"])
        prefix = "dec_" if is_pair else ""
        self.embedding = self.take(torch.nn.Embedding(V, H), {"weight": "target" if is_pair else "embedding"}, dump)
        self.decoder = self.lstm(H, layers, prefix, dump)
        self.head = self.take(torch.nn.Linear(H, V), {"weight": "head", "bias": "head_bias"}, dump)
        if is_pair:
            self.source = self.take(torch.nn.Embedding(V, H), {"weight": "source"}, dump)
            self.encoder = self.lstm(H, layers, "enc_", dump)
            self.combine = self.take(torch.nn.Linear(2 * H, H, bias=False), {"weight": "combine"}, dump)

    def take(self, module, names, dump):
        module.double()
        for ours, name in names.items():
            p = getattr(module, ours)
            value = torch.tensor(dump["weight." + name], dtype=torch.float64).view(p.shape)
            if self.fault == "gates" and re.search("(^|_)[xh]1$", name):  # i and f change places
                value = torch.cat([value[self.H:2 * self.H], value[:self.H], value[2 * self.H:]])
            if self.fault == "forget" and name == "bias1": value[self.H] += 0.01
            p.data.copy_(value)
            self.named[name] = p
        return module

    def lstm(self, H, layers, prefix, dump):
        module = torch.nn.LSTM(H, H, layers)
        names = {}
        for l in range(layers):
            names |= {f"weight_ih_l{l}": f"{prefix}x{l + 1}", f"bias_ih_l{l}": f"{prefix}bias{l + 1}", f"weight_hh_l{l}": f"{prefix}h{l + 1}"}
            getattr(module, f"bias_hh_l{l}").requires_grad_(False).zero_()
        return self.take(module, names, dump)

    def attended(self, source, start, tokens):
        """The decoder's states [T, B, H] with what they attend to."""
        texts = [source[0 if self.fault == "mask" else s:, b] for b, s in enumerate(start.tolist())]
        lengths = torch.tensor([len(t) for t in texts])
        packed = pack_padded_sequence(self.source(pad_sequence(texts)), lengths, enforce_sorted=False)
        out, state = self.encoder(packed)
        e = pad_packed_sequence(out)[0]
        h = self.decoder(self.embedding(tokens), None if self.fault == "state" else state)[0]
        scores = torch.einsum("tbh,sbh->tbs", h, e) * (0.9 if self.fault == "attention" else 1)
        beyond = torch.arange(len(e))[None, :] >= lengths[:, None]
        context = torch.einsum("tbs,sbh->tbh", scores.masked_fill(beyond, -math.inf).softmax(2), e)
        return torch.tanh(self.combine(torch.cat([context, h], 2)))

    def loss(self, batch):
        if "source" in batch: h = self.attended(batch["source"], batch["start"], batch["tokens"])
        else: h = self.decoder(self.embedding(batch["tokens"]))[0]
        targets = batch["targets"].clone()
        if self.fault == "target": targets[-1, 0] = 65  # where the program may have none
        return F.cross_entropy(self.head(h).flatten(0, 1), targets.flatten(), ignore_index=-1)


class Cnn(torch.nn.Module):
    """The network of a dump. A weight is [out, kernel, kernel, in] in the program."""

    def __init__(self, dump, fault):
        super().__init__()
        self.fault, self.averages = fault, {}
        self.named = {}
        for key, value in dump.items():
            if key.startswith("weight."):
                self.named[key[7:]] = torch.nn.Parameter(torch.tensor(value, dtype=torch.float64))
        for key, p in self.named.items():
            if re.search("stem$|conv|head$", key): p.data = p.data.view(len(self.named[matching_vector(key)]), -1)

    def conv(self, names, x, kernel, stride, added=0, relu=True):
        weight, scale, bias = (self.named[n] for n in names)
        weight = weight.view(len(weight), kernel, kernel, -1).permute(0, 3, 1, 2)
        x = F.conv2d(x, weight, stride=stride, padding=kernel // 2)
        mean, var = self.averages.setdefault(names[0], (torch.zeros_like(bias), torch.ones_like(bias)))
        x = F.batch_norm(x, mean, var, scale, bias, self.training, 0.1, 1e-3 if self.fault == "epsilon" else 1e-5) + added
        return F.relu(x) if relu else x

    def logits(self, x):
        x = self.conv(["stem", "stem.norm", "stem.bias"], x, 3, 1)
        for s in "123":
            names = [[f"{s}.{part}{i}" for part in ("conv", "norm", "bias")] for i in (1, 2, 3)]
            inner = self.conv(names[0], x, 3, 1 if s == "1" else 2)
            if s != "1": x = self.conv(names[2], x, 1, 2, relu=self.fault == "relu")
            x = self.conv(names[1], inner, 3, 1, 0 if self.fault == "shortcut" and s == "1" else x)
        return F.linear(x.mean((2, 3)), self.named["head"], self.named["head.bias"])

    def loss(self, batch):
        return F.cross_entropy(self.logits(batch["pictures"]), batch["labels"])


def matching_vector(weight):
    """The bias, which is as long as the weight has rows."""
    return "head.bias" if weight == "head" else "stem.bias" if weight == "stem" else weight.replace("conv", "bias")


def batch_of(dump, step, B, T, S):
    lengths = {"tokens": T, "targets": T} | ({"source": S} if S else {})
    batch = {k: torch.tensor(dump[f"{k}.{step}"].astype(np.int64)).view(n, B) for k, n in lengths.items()}
    return batch | ({"start": torch.tensor(dump[f"start.{step}"].astype(np.int64))} if S else {})


def learning_rate(step, fault):
    warmup = STEPS // 20
    if step < warmup and fault != "schedule": return LR * (step + 1) / warmup
    return LR * 0.5 * (1 + math.cos(math.pi * min((step - warmup) / (STEPS - 1 - warmup), 1)))


def train(network, batches, fault):
    """The losses of STEPS steps."""
    groups = [{"params": [p for p in network.named.values() if (p.dim() > 1) == matrices],
               "weight_decay": DECAY if matrices and fault != "decay" else 0} for matrices in (True, False)]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPS)
    losses = []
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups: group["lr"] = learning_rate(step, fault)
        optimizer.zero_grad()
        loss = network.loss(batch)
        loss.backward()
        if fault != "clip": torch.nn.utils.clip_grad_norm_(network.named.values(), CLIP)
        optimizer.step()
        losses.append(loss.item())
    return losses


def text_write(path, seed):
    words = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dogs", "and", "sleeps", "in", "a", "warm", "barn.\n"]
    with open(path, "w") as f: f.write(" ".join(np.random.default_rng(seed).choice(words, 4000)))


def compile_program(ref, name):
    program = ref.path(f"{name}_fp32")
    command = [*shlex.split(os.environ.get("CC", "cc")), *FLAGS.split(), f"-march={ref.march}", "-DPRECISION=3",
               os.path.join(HERE, "..", "paper", f"{name}.c"), "-o", program, "-lm"]
    subprocess.run(command, check=True, timeout=300)
    return program


def run_program(program, options, *more):
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ}
    result = subprocess.run([program, *options, *more], capture_output=True, text=True, timeout=200, env=environment)
    assert result.returncode == 0 and not result.stderr, result.stderr
    return result.stdout


def check_gradients(ref, name, dump, make, batch):
    def difference(fault):
        network = make(fault)
        loss = network.loss(batch)
        loss.backward()
        off = {"loss": abs(loss.item() / float(dump["loss"][0]) - 1) / LOSS_LIMIT}
        for key, p in network.named.items():
            ours = dump["gradient." + key].reshape(p.shape)
            off[key] = np.abs(ours - p.grad.numpy()).max() / np.abs(p.grad.numpy()).max() / GRADIENT_LIMIT
        worst = max(off, key=off.get)
        return off[worst], f"at most {off[worst]:.3g} of what is allowed, {worst}"
    expected = {k for k in dump if k.startswith("gradient.")}
    ref.check(f"{name}: the same parameters", expected == {"gradient." + k for k in make("").named})
    off, text = difference("")
    ref.check(f"{name}: loss and gradients", off <= 1, text)
    for fault in GRADIENT_FAULTS.get(name, []):
        off, text = difference(fault)
        ref.check(f"{name}: a planted fault is seen, {fault}", off > 1, text)


def check_training(ref, name, printed, make, batches, faults, limit):
    """Returns the network that PyTorch trained. limit: of the difference of any loss."""
    ours = {int(step): float(loss) for step, loss in re.findall(r"^ *(\d+)/\d+ \| loss ([\d.]+)", printed, re.M)}
    assert len(ours) == 10, printed
    for fault in faults + [""]:
        network = make("")
        losses = train(network, batches, fault)
        off = max(abs(losses[step - 1] - loss) for step, loss in ours.items())
        last = f"after {STEPS} steps {ours[STEPS]:.5f}, PyTorch {losses[STEPS - 1]:.5f}; at most {off:.6f} apart"
        ok = off > limit if fault else off <= limit
        ref.check(f"{name}: " + (f"a planted fault is seen, {fault}" if fault else "training"), ok, last)
    return network


def check_lstm(ref):
    program = compile_program(ref, "lstm")
    text_write(ref.path("train.txt"), 1)
    text_write(ref.path("val.txt"), 2)
    for name, (options, T, S) in CONFIGS.items():
        options = [*options.split(), "--steps", str(STEPS), "--lr", str(LR)]
        if not S: options += ["--train", ref.path("train.txt"), "--val", ref.path("val.txt")]
        number = lambda option: int(options[options.index(option) + 1])
        run_program(program, options, "--dump", ref.path("dump"))
        dump = read_arrays(ref.path("dump"))
        batches = [batch_of(dump, step, number("--batch"), T, S) for step in range(STEPS)]
        make = lambda fault: Lstm(dump, number("--hidden"), number("--layers"), S > 0, fault)
        check_gradients(ref, name, dump, make, batches[0])
        printed = run_program(program, options, "--test", "20")
        check_training(ref, name, printed, make, batches, TRAINING_FAULTS if name == "dates, two layers" else [], CURVE_LIMIT)


def pictures_of(path):
    """Pictures [count, 1, side, side] as the program reads them, and labels, of a file of data/glyphs.c."""
    raw = open(path, "rb").read()
    count, side = np.frombuffer(raw, "<i4", 2, 8)
    body = np.frombuffer(raw, np.uint8, offset=64).astype(np.float64)
    return torch.tensor((body[count:].reshape(count, 1, side, side) - 128) / 64), torch.tensor(body[:count].astype(np.int64))


def check_cnn(ref):
    program, glyphs, batch = compile_program(ref, "cnn"), ref.path("glyphs"), 64
    subprocess.run([*shlex.split(os.environ.get("CC", "cc")), "-O2", os.path.join(HERE, "..", "..", "data", "glyphs.c"), "-o", glyphs], check=True)
    subprocess.run([glyphs, "--out", ref.path("data"), "--train", "6400", "--test", "1000"], check=True, stdout=subprocess.DEVNULL)
    options = f"--data {ref.path('data')} --batch {batch} --channels 8 --steps {STEPS} --lr {LR}".split()
    run_program(program, options, "--dump", ref.path("dump"))
    dump = read_arrays(ref.path("dump"))
    batches = [{"pictures": torch.tensor(dump[f"pictures.{step}"].reshape(batch, 1, 16, 16).astype(np.float64)),
                "labels": torch.tensor(dump[f"labels.{step}"].astype(np.int64))} for step in range(STEPS)]
    make = lambda fault: Cnn(dump, fault)
    check_gradients(ref, "cnn", dump, make, batches[0])
    printed = run_program(program, options)
    network = check_training(ref, "cnn", printed, make, batches, ["schedule"], CNN_CURVE_LIMIT)
    network.eval()
    pictures, labels = pictures_of(ref.path("data/test.bin"))
    right = 100 * (network.logits(pictures).argmax(1) == labels).double().mean().item()
    loss = network.loss({"pictures": pictures, "labels": labels}).item()
    ours = [float(x) for x in re.search(r"test: loss ([\d.]+) nats .* accuracy ([\d.]+)%", printed).groups()]
    ref.check("cnn: accuracy", abs(right - ours[1]) <= 1 and abs(loss - ours[0]) <= CNN_CURVE_LIMIT,
              f"{ours[1]:.2f}%, PyTorch {right:.2f}%; loss {ours[0]:.6f} and {loss:.6f}")


def main():
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    with tempfile.TemporaryDirectory() as temporary:
        ref = References(temporary, None, os.environ.get("MARCH", "native"))
        check_cnn(ref)
        check_lstm(ref)
    print(f"{ref.passed} passed, {ref.failed} failed")
    return ref.failed != 0


if __name__ == "__main__":
    sys.exit(main())
