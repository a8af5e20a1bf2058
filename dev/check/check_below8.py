#!/usr/bin/env python3
"""The trainer below eight bits against ml_dtypes, gfloat and others' rules: python3 dev/check/check_below8.py

dev/check/dump_below8.c rounds and quantizes with the trainer's code. Against ml_dtypes: E2M1, and the types of blocks' scales, E8M0
(MX) and E4M3 (two-level). Against gfloat: E2M1, stochastic rounding with the same random bits, MX's blocks. The rules of NVFP4
scales in Transformer Engine and torchao stand here as NumPy formulas. Where ours differ:
  NaN       E2M1 has none: ml_dtypes makes -0 of it, ours 6, and makes the block's (or the tensor's) scale_inv NaN
  zero      ours never lets the scale of a block become 0: E4M3's least number, 2^-9, takes its place. Transformer Engine keeps 0,
            and the block's elements become 0 (ours mostly, too); torchao's least is E4M3's least normal number, 2^-6
"""

import sys

import ml_dtypes
import numpy as np

import check_references

try:
    import gfloat
    import gfloat.formats
except ModuleNotFoundError:
    gfloat = None

SOURCES = ["dump_below8.c"]
E2M1, E4M3, E5M2, E8M0 = ml_dtypes.float4_e2m1fn, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.float8_e8m0fnu
# format: ml_dtypes' type, gfloat's name, largest number, least normal number, bits of mantissa
FORMATS = {"e4m3": (E4M3, "ocp_e4m3", 448, 2.0**-6, 3), "e5m2": (E5M2, "ocp_e5m2", 57344, 2.0**-14, 2), "e2m1": (E2M1, "ocp_e2m1", 6, 1, 1)}
ROWS, COLUMNS = 128, 256
f32 = np.float32


def info(name):
    return getattr(gfloat.formats, "format_info_" + name)


def values_of(codes, name):
    """Of codes with the sign in bit 7."""
    codes = codes.astype(np.uint8)
    return ((codes & 7 | codes >> 4 & 8) if name == "e2m1" else codes).view(FORMATS[name][0]).astype(np.float64)


def sample():
    """Floats of both signs and all sizes around the formats' ranges; all bf16 numbers; E2M1's numbers and ties with their neighbors."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=400_000) * 2.0 ** rng.integers(-20, 18, 400_000)
    points = np.concatenate([np.arange(0, 8.5, 0.25), -np.arange(0, 8.5, 0.25)]).astype(f32).view(np.uint32)
    bits = [x.astype(f32).view(np.uint32), np.arange(65536, dtype=np.uint32) << 16, *(points + np.uint32(d & 0xffffffff) for d in (-1, 0, 1))]
    return np.concatenate(bits).view(f32), rng.integers(0, 2**32, sum(len(b) for b in bits), np.uint32)


def matrix():
    """bf16 numbers, in blocks of many sizes: some are so small that the scale of a block beside the tensor's would be 0; zeros."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(ROWS, COLUMNS)) * np.kron(2.0 ** rng.integers(-14, 3, (ROWS // 16, COLUMNS // 16)), np.ones((16, 16)))
    x[16:32, 64:128] *= 2.0**-20
    x[:48, :48] = 0
    x[::5, ::7] *= 16
    x[1, 200] = -1024 * (1 + 3 / 128)  # the largest: an amax for which the order matters
    return (x.astype(f32).view(np.uint32) & 0xffff0000).view(f32)


def check_numbers(ref, got, x, random):
    codes, finite = np.arange(16, dtype=np.uint8), ~np.isnan(x)
    theirs = {"ml_dtypes": codes.view(E2M1).astype(np.float64), **({"gfloat": gfloat.decode_ndarray(info("ocp_e2m1"), codes)} if gfloat else {})}
    for library, values in theirs.items():
        same = (got["values"] == values) & (np.signbit(got["values"]) == np.signbit(values))
        ref.check(f"e2m1 against {library}: 16 codes", np.all(same))
    nibble = (got["encoded"].astype(np.uint8) & 7) | (got["encoded"].astype(np.uint8) >> 4 & 8)
    flushed = np.where(np.abs(x) < 2.0**-126, np.copysign(f32(0), x), x)
    ref.check("e2m1: NaN becomes 6", np.all(nibble[~finite] == 7))
    ref.check(f"e2m1 against ml_dtypes: {finite.sum()} floats", np.array_equal(nibble[finite], flushed[finite].astype(E2M1).view(np.uint8)))
    if gfloat:
        rounded = gfloat.round_ndarray(info("ocp_e2m1"), flushed[finite].astype(np.float64), sat=True)
        ref.check("e2m1 against gfloat: the same", np.array_equal(nibble[finite], gfloat.encode_ndarray(info("ocp_e2m1"), rounded)))
    away = np.where(np.abs(x) == 2.5, 5, nibble & 7)
    ref.check("a planted fault is seen: ties away from zero", not np.array_equal(away[finite], nibble[finite] & 7))
    for name, (_, theirs, largest, normal, mantissa) in FORMATS.items():
        if not gfloat: break
        y = np.abs(flushed).astype(np.float64)
        used = finite & (y <= largest)
        ours, wanted = values_of(got[f"stochastic/{name}"], name)[used], np.empty(used.sum())
        other = np.empty(used.sum())
        for tiny in (False, True):  # the random bits that are used: as many as an fp32 number has below the format's last bit; 23
            part, bits = (y[used] < normal) == tiny, 23 if tiny else 23 - mantissa
            few = (random[used][part] >> (32 - bits)).astype(np.int64)
            for out, r in ((wanted, few), (other, few[::-1])):
                out[part] = gfloat.round_ndarray(info(theirs), y[used][part], gfloat.RoundMode.StochasticFastest, True, r, bits)
        ref.check(f"stochastic {name} against gfloat, with the same random bits: {used.sum()} numbers", np.array_equal(ours, wanted),
                  f"{np.count_nonzero(ours != wanted)} differ")
        ref.check("a planted fault is seen: other random bits", np.mean(ours != other) > 0.05)


def blocks_of(x, across, along):
    """[blocks, elements] of x [I, K], in the order of inv."""
    return x.reshape(x.shape[0] // across, across, x.shape[1] // along, along).transpose(0, 2, 1, 3).reshape(-1, across * along)


def encode(x, scale, dtype):
    """Values that x * scale rounds to, saturating."""
    largest = float(ml_dtypes.finfo(dtype).max)
    return np.clip(x.astype(f32) * scale.astype(f32), -largest, largest).astype(dtype).astype(np.float64)


def check_mx(ref, name, x, values, inv):
    amax = np.abs(x).max(1, keepdims=True).astype(np.float64)
    safe = np.where(amax > 0, amax, 6)
    wanted = 2.0 ** (np.floor(np.log2(safe)) - 2 if "floor" in name else np.ceil(np.log2(safe / 6)))
    wanted = np.where(amax > 0, wanted, 1)
    ref.check(f"{name}: scales of {len(inv)} blocks are the rule's", np.array_equal(inv, wanted))
    ref.check(f"{name}: and E8M0 numbers of ml_dtypes", np.array_equal(inv, inv.astype(E8M0).astype(f32)))
    ref.check(f"{name}: elements against ml_dtypes", np.array_equal(values, encode(x, 1 / inv, E2M1)))
    if gfloat and "floor" in name:
        used = amax[:, 0] > 0
        theirs = [gfloat.quantize_block(info("mxfp4_e2m1"), b.astype(np.float64), gfloat.compute_scale_amax) for b in x[used]]
        ref.check(f"{name}: against gfloat's MXFP4", np.array_equal(values[used] * inv[used], np.array(theirs)))
    ref.check("a planted fault is seen: the scale is off by 2", not np.array_equal(values, encode(x, 2 / inv, E2M1)))


def check_two_levels(ref, name, x, values, inv, scale_inv, dtype):
    """Ours exactly; then Transformer Engine's and torchao's rules, which differ as said above."""
    largest = f32(ml_dtypes.finfo(dtype).max)
    amax, top = np.abs(x).max(1, keepdims=True), np.abs(x).max()
    tensor = f32(448) * largest / top
    scaled = amax / largest * tensor
    ref.check(f"{name}: scale of the tensor", scale_inv == 1 / tensor)
    wanted = np.maximum(scaled.astype(E4M3).astype(f32), f32(2.0**-9))
    ref.check(f"{name}: scales of {len(inv)} blocks are ml_dtypes' E4M3, none is 0", np.array_equal(inv, wanted))
    ref.check(f"{name}: elements against ml_dtypes", np.array_equal(values, encode(x, tensor / wanted, dtype)))
    ref.check("a planted fault is seen: one level", not np.array_equal(values, encode(x, largest / np.maximum(amax, f32(1e-30)), dtype)))
    # Transformer Engine: compute_decoding_scaling_factor() and what follows it
    encode_scale = f32(448) * largest / top
    decode = (amax / largest * encode_scale).astype(E4M3).astype(f32)
    used = decode[:, 0] > 0
    te = encode(x[used], encode_scale / decode[used], dtype)
    same = np.array_equal(inv[used], decode[used]) and np.array_equal(values[used], te)
    ref.check(f"{name}: Transformer Engine's rule, {used.sum()} blocks; where its scale is 0, ours is 2^-9",
              same and np.all(inv[~used] == 2.0**-9) and np.any(~used))
    # torchao: nvfp4_quantize() with per_tensor_scale
    per_tensor = top / (f32(448) * largest)
    block = np.clip(amax / largest / per_tensor, f32(2.0**-6), f32(448)).astype(E4M3).astype(f32)
    used = scaled[:, 0] >= 2.0**-6
    ao = np.clip(x / (per_tensor * block), -largest, largest).astype(dtype).astype(np.float64)[used]
    apart = np.mean(inv[used] != block[used]), np.mean(values[used] != ao)
    ref.check(f"{name}: torchao's rule, {used.sum()} blocks of at least 2^-6: {apart[0]:.2g}, {apart[1]:.2g}", max(apart) < 1e-3)


def check_stochastic(ref, name, x, values, scale):
    """Neighbors of x * scale, and their mean."""
    y = (x.astype(f32) * scale.astype(f32)).astype(np.float64)
    grid = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    a = np.minimum(np.abs(y), 6)
    low = grid[np.searchsorted(grid, a, "right") - 1]
    high = grid[np.minimum(np.searchsorted(grid, a, "left"), 7)]
    got = np.abs(values)
    ref.check(f"{name}: neighbors of the number, with its sign", np.all((got == low) | (got == high)) and np.all((y >= 0) == ~np.signbit(values)))
    errors = np.sum(got - a) / np.sqrt(np.sum((high - a) * (a - low)))
    ref.check(f"{name}: {got.size} elements are right in the mean, within {abs(errors):.2f} standard errors", abs(errors) < 4)
    near = encode(x, scale, E2M1)
    ref.check("a planted fault is seen: rounding to nearest", np.mean(near != values) > 0.05)


def run(ref):
    np.seterr(all="ignore")
    x, random = sample()
    x.tofile(ref.path("floats"))
    random.tofile(ref.path("random"))
    matrix().tofile(ref.path("matrix"))
    ref.run("dump_below8.c", "fp8", ref.path("floats"), ref.path("random"), ref.path("matrix"), ref.path("below8"))
    got = check_references.read_arrays(ref.path("below8"))
    if gfloat is None: ref.skip("check_below8: no Python package gfloat, compared with ml_dtypes only")
    check_numbers(ref, got, x, random)
    for recipe, across, along, form in (("x:mxfp4", 1, 32, "e2m1"), ("x:mxfp4+floor", 1, 32, "e2m1"), ("x:nvfp4", 1, 16, "e2m1"),
                                        ("w:nvfp4", 16, 16, "e2m1"), ("x:nvfp4+e4m3", 1, 16, "e4m3"),
                                        ("x:mxfp4+stochastic", 1, 32, "e2m1"), ("x:nvfp4+stochastic", 1, 16, "e2m1")):
        for way in (0, 1):
            take = {what: got[f"{recipe}/{way}/{what}"] for what in ("codes", "inv", "scale_inv")}
            codes, numbers = take["codes"].reshape(ROWS, COLUMNS), matrix()
            if way: codes, numbers = codes.T, numbers.T
            numbers, values = blocks_of(numbers, across, along), values_of(blocks_of(codes, across, along), form)
            inv, name = take["inv"].reshape(-1, 1), recipe + (", K along rows" if way else "")
            if "stochastic" in recipe: check_stochastic(ref, name, numbers, values, f32(1) / take["scale_inv"] / inv)
            elif "mx" in recipe: check_mx(ref, name, numbers, values, inv)
            else: check_two_levels(ref, name, numbers, values, inv, take["scale_inv"][0], FORMATS[form][0])


if __name__ == "__main__":
    sys.exit(check_references.main(["check_below8"]))
