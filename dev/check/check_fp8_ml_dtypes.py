#!/usr/bin/env python3
"""The trainer's FP8 conversions against ml_dtypes and gfloat: python3 dev/check/check_fp8_ml_dtypes.py

dev/check/dump_fp8.c converts with the trainer's code. Where the libraries differ from our rules on purpose:
  overflow  ml_dtypes gives NaN (E4M3) or Inf (E5M2), ours saturates, Inf included; gfloat saturates when asked
  NaN       theirs keeps the sign or a payload, ours is 0x7F always, as CUDA's satfinite conversion does
  scales    of a block are clamped to 2^-126 .. 2^126, so that neither they nor their inverses are denormals; OCP's E8M0 has 2^-127
  denormals quantize() multiplies with denormals flushed (bf16's smallest numbers, and results below 2^-126), NumPy does not
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

SOURCES = ["dump_fp8.c"]
FORMATS = {"E4M3": (ml_dtypes.float8_e4m3fn, "format_info_ocp_e4m3", 0x7e), "E5M2": (ml_dtypes.float8_e5m2, "format_info_ocp_e5m2", 0x7b)}
SCALES = np.array([1, 0.7, 3, 448, 1e-3, 57344, 2.0**-20, 1.7 * 2.0**20, 2.0**-126, 2.0**126], np.float32)


def flush(x):
    """Denormals become zeros of their sign."""
    return np.where(np.abs(x) < 2.0**-126, np.copysign(np.float32(0), x), x).astype(np.float32)


def encode_ml_dtypes(x, name):
    dtype, _, max_code = FORMATS[name]
    codes = x.astype(dtype).view(np.uint8)
    too_large = ~np.isnan(x) & ~np.isfinite(codes.view(dtype).astype(np.float32))
    codes = np.where(too_large, max_code | np.signbit(x).astype(np.uint8) << 7, codes)
    return np.where(np.isnan(x), 0x7f, codes).astype(np.uint8)


def encode_gfloat(x, name):
    info = getattr(gfloat.formats, FORMATS[name][1])
    x = x.astype(np.float64)
    number = np.where(np.isnan(x), 0.0, x)
    return np.where(np.isnan(x), 0x7f, gfloat.encode_ndarray(info, gfloat.round_ndarray(info, number, sat=True))).astype(np.uint8)


def sample():
    """Random float32 bit patterns; all bf16 numbers; every FP8 number and every midpoint of two, each with its
    neighbours; the edges of both ranges."""
    rng = np.random.default_rng(1)
    bits = [rng.integers(0, 2**32, 3_000_000, np.uint32), np.arange(65536, dtype=np.uint32) << 16]
    near = rng.integers(0, 2**23, 1_000_000, np.uint32) | rng.integers(127 - 20, 127 + 18, 1_000_000, np.uint32) << 23
    bits += [near, near | 0x80000000]
    for dtype, _, _ in FORMATS.values():
        values = np.arange(256, dtype=np.uint8).view(dtype).astype(np.float64)
        values = np.unique(values[np.isfinite(values)])
        points = np.concatenate([values, (values[1:] + values[:-1]) / 2, [464, 480, 61440, 65536, -464, -480, -61440, -65536]])
        center = points.astype(np.float32).view(np.uint32)
        bits += [center + np.uint32(d & 0xffffffff) for d in range(-2, 3)]
    return np.concatenate(bits).view(np.float32)


def same_numbers(a, b):
    """The same values, with the sign of zero; NaN equals NaN."""
    return bool(np.all(np.where(np.isnan(b), np.isnan(a), (a == b) & (np.signbit(a) == np.signbit(b)))))


def check_codes(ref, name, got, wanted, x):
    bad = np.flatnonzero(got != wanted)
    first = f", first {x[bad[0]]!r}: {got[bad[0]]:#04x}, wanted {wanted[bad[0]]:#04x}" if len(bad) else ""
    return ref.check(name, not len(bad), f"{len(bad)} of {len(x)} differ{first}")


# As `recipes` in dump_fp8.c: name, format, a block's elements across and along K (0: all of it), scale divided by 2^margin, whether
# the scale's exponent is OCP's (floor log2 amax - emax)
ROWS, COLUMNS = 256, 512
BLOCKS = [("mx floor", "E4M3", 1, 32, 0, True), ("mx floor", "E5M2", 1, 32, 0, True), ("mx up", "E4M3", 1, 32, 0, False),
          ("mx up", "E5M2", 1, 32, 0, False), ("1 x 128", "E4M3", 1, 128, 0, False), ("1 x 128", "E5M2", 1, 128, 0, False),
          ("128 x 128", "E4M3", 128, 128, 0, False), ("rowwise", "E4M3", 1, 0, 0, False), ("rowwise, margin 2", "E5M2", 1, 0, 2, False)]


def block_sample():
    """bf16 numbers: magnitudes that change within a block and from block to block, powers of two, blocks of zeros."""
    rng = np.random.default_rng(2)
    coarse = np.kron(2.0 ** rng.integers(-40, 40, (ROWS // 32, COLUMNS // 32)), np.ones((32, 32)))
    x = rng.normal(size=(ROWS, COLUMNS)) * 2.0 ** rng.integers(-8, 8, (ROWS, COLUMNS)) * coarse
    x[1, ::7] = 2.0 ** rng.integers(-3, 3, x[1, ::7].shape)
    x[2, 32:64] = 0
    x[128:, :128] = 0
    return (x.astype(np.float32).view(np.uint32) & 0xffff0000).view(np.float32)


def check_report(ref, name, x, values, sqnr, kurtosis):
    """What scales.tsv reports of a tensor, by its definition; `values` are what the bytes stand for."""
    x = x.astype(np.float64)
    wanted = 10 * np.log10(np.sum(x**2) / np.sum((x - values)**2)), np.mean(x**4) / np.mean(x**2)**2
    ref.check(f"{name}: SQNR and kurtosis against NumPy", abs(sqnr - wanted[0]) < 1e-4 and abs(kurtosis / wanted[1] - 1) < 1e-5,
              f"{sqnr:.6f} dB, {kurtosis:.9g}, wanted {wanted[0]:.6f} dB, {wanted[1]:.9g}")


def check_blocks(ref, name, form, across, along, margin, ocp, codes, inv, report, x):
    """x and its codes: [I, K]."""
    dtype, _, max_code = FORMATS[form]

    def blocks_of(a):  # [blocks, elements], in the order of inv
        return a.reshape(a.shape[0] // across, across, a.shape[1] // along, along).transpose(0, 2, 1, 3).reshape(-1, across * along)

    blocks, inv = blocks_of(x.astype(np.float64)), inv.reshape(-1, 1).astype(np.float64)
    amax = np.abs(blocks).max(1, keepdims=True)
    largest = np.float64(np.uint8(max_code).view(dtype).astype(np.float32))
    exponent = np.where(amax > 0, np.floor(np.log2(np.where(amax > 0, largest / amax, 1))) - margin, 0)  # nothing is cut
    if ocp: exponent = np.where(amax > 0, np.floor(np.log2(largest)) - np.floor(np.log2(np.where(amax > 0, amax, 1))), 0)
    ref.check(f"{name} {form}: scales of {len(inv)} blocks are the rule's", np.array_equal(inv, 2.0**-exponent))
    check_report(ref, f"{name} {form}", blocks, blocks_of(codes).copy().view(dtype).astype(np.float64) * inv, *report)
    wanted = encode_ml_dtypes((blocks / inv).astype(np.float32), form)
    check_codes(ref, f"{name} {form} against ml_dtypes", blocks_of(codes).ravel(), wanted.ravel(), blocks.ravel())
    if gfloat is None or not ocp: return
    info = getattr(gfloat.formats, "format_info_mxfp8_" + form.lower())
    values = blocks_of(codes).copy().view(dtype).astype(np.float64) * inv
    theirs = np.array([gfloat.quantize_block(info, b, gfloat.compute_scale_amax) for b in blocks])
    ref.check(f"{name} {form} against gfloat's {info.name}: {values.size} numbers", np.array_equal(values, theirs))


def run(ref):
    x = sample()
    block_sample().tofile(ref.path("matrix"))
    x.tofile(ref.path("floats"))
    SCALES.tofile(ref.path("scales"))
    ref.run("dump_fp8.c", "fp8", ref.path("floats"), ref.path("scales"), ref.path("matrix"), ref.path("fp8"))
    data, at = open(ref.path("fp8"), "rb").read(), 0

    def take(dtype, count):
        nonlocal at
        out = np.frombuffer(data, dtype, count, at)
        at += out.nbytes
        return out

    if gfloat is None: ref.skip("check_fp8_ml_dtypes: no Python package gfloat, compared with ml_dtypes only")
    all_codes = np.arange(256, dtype=np.uint8)
    all_bf16 = (np.arange(65536, dtype=np.uint32) << 16).view(np.float32)
    np.seterr(all="ignore")
    for name, (dtype, info, max_code) in FORMATS.items():
        values = {"ml_dtypes": all_codes.view(dtype).astype(np.float32)}
        if gfloat: values["gfloat"] = gfloat.decode_ndarray(getattr(gfloat.formats, info), all_codes)
        encoders = {"ml_dtypes": encode_ml_dtypes, **({"gfloat": encode_gfloat} if gfloat else {})}
        decoded = {"fp8_decode": take("<f4", 256), "decode_bf16": take("<f4", 256)}
        for function, ours in decoded.items():
            for library, theirs in values.items():
                ref.check(f"{name} {function} against {library}: 256 codes", same_numbers(ours, theirs))
        codes = take(np.uint8, len(x))
        for library, encode in encoders.items():
            check_codes(ref, f"{name} fp8_encode against {library}", codes, encode(x, name), x)

        # All bf16 numbers at several scales through the trainer's quantizer, and what it counts.
        ours, scaled, counts_wrong = [], [], []
        for scale in SCALES:
            ours.append(take(np.uint8, 65536))
            stats = take("<u8", 5)
            y = flush(flush(all_bf16) * scale)
            magnitude = np.abs(y)
            saturated = magnitude > 464 if name == "E4M3" else magnitude >= 61440
            flushed = (encode_ml_dtypes(y, name) & 0x7f == 0) & (all_bf16.view(np.uint32) & 0x7fffffff != 0)
            nonfinite = ~np.isfinite(all_bf16)
            wanted = [0x7fff0000, saturated.sum(), flushed.sum(), nonfinite.sum(), 65536]
            if stats.tolist() != [int(v) for v in wanted]: counts_wrong.append(f"scale {scale}: {stats.tolist()}, wanted {wanted}")
            scaled.append(y)
        ours, scaled = np.concatenate(ours), np.concatenate(scaled)
        for library, encode in encoders.items():
            check_codes(ref, f"{name} quantize, all bf16 at {len(SCALES)} scales, against {library}", ours, encode(scaled, name), scaled)
        ref.check(f"{name} quantize counts amax, saturated, flushed, non-finite", not counts_wrong, "; ".join(counts_wrong))

        # Faults that such a comparison must see: truncation, ties away from zero, no saturation.
        even = encode_ml_dtypes(x, name)
        down = encode_ml_dtypes(np.nextafter(x, np.float32(0)), name)
        up = encode_ml_dtypes(np.nextafter(x, np.copysign(np.float32(np.inf), x)), name)
        raw = x.astype(dtype).view(np.uint8)
        for fault, wrong in {"ties towards zero": down, "ties away from zero": up, "no saturation": raw}.items():
            ref.check(f"{name}: a planted fault is seen, {fault}", np.any(wrong != codes) and np.array_equal(even, codes),
                      f"{np.count_nonzero(wrong != codes)} differ")
    for name, form, across, along, margin, ocp in BLOCKS:
        for along_rows in (False, True):
            codes, x = take(np.uint8, ROWS * COLUMNS).reshape(ROWS, COLUMNS), block_sample()
            if along_rows: codes, x, name = codes.T, x.T, name + ", K along rows"
            size = along or x.shape[1]
            check_blocks(ref, name, form, across, size, margin, ocp, codes, take("<f4", x.size // across // size), take("<f8", 2), x)
    x, codes = block_sample(), take(np.uint8, ROWS * COLUMNS).reshape(ROWS, COLUMNS)
    check_report(ref, "one scale E4M3", x, codes.view(FORMATS["E4M3"][0]).astype(np.float64) * (np.abs(x).max() / 448), *take("<f8", 2))
    ref.check("FP8: the whole of the helper's output was read", at == len(data))


if __name__ == "__main__":
    sys.exit(check_references.main(["check_fp8_ml_dtypes"]))
