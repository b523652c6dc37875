"""Writes test/golden/quant: blocks.json, blocks of every storage type and the values that the `gguf` package (PyPI, the
format's own Python implementation) gives for them, and sample.gguf with the sums of its tensors (sample.json). Run: pip install gguf==0.19.0; python scripts/make-quant-golden.py

Each type has blocks of random bytes (so that every bit of every field is exercised) whose f16 scales are random finite
numbers, then blocks whose scales are each of the edges: zeros, subnormals, the largest, infinities, NaN.
"""

import base64
import itertools
import json
import pathlib

import gguf
import numpy as np

TYPES = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]
# Byte positions of the f16 numbers in a block.
SCALES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
EDGES = [0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x7BFF, 0x7C00, 0xFC00, 0x7E00]
PLAIN = 6


def blocks_of(name: str, rng: np.random.Generator) -> np.ndarray:
    values, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    if name not in SCALES:
        count = 256
        data = rng.integers(0, 256, (count, size), dtype=np.uint8)
        if name != "F32":  # every exponent, and both infinities
            words = np.arange(count, dtype=np.uint32) * 257 % 65536
            data = words.astype("<u2").view(np.uint8).reshape(count, 2)
        return data
    places = SCALES[name]
    edges = list(itertools.product(EDGES, repeat=1)) if len(places) == 1 else [(e, f) for e in EDGES for f in (EDGES[0], EDGES[4], e)]
    data = rng.integers(0, 256, (PLAIN + len(edges), size), dtype=np.uint8)
    for i in range(len(data)):
        for j, place in enumerate(places):
            scale = rng.normal(0, 0.05) if i < PLAIN else None
            bits = np.float16(scale).view(np.uint16) if scale is not None else np.uint16(edges[i - PLAIN][j])
            data[i, place : place + 2] = np.frombuffer(bits.astype("<u2").tobytes(), np.uint8)
    return data


def write_sample(path: pathlib.Path, rng: np.random.Generator) -> None:
    """A GGUF as the package writes it, to be read by ours: each kind of metadata value, and quantised tensors."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("test.text", "grüße, 世界 😀")
    writer.add_uint8("test.u8", 200)
    writer.add_int8("test.i8", -100)
    writer.add_uint16("test.u16", 60000)
    writer.add_int16("test.i16", -30000)
    writer.add_uint32("test.u32", 4000000000)
    writer.add_int32("test.i32", -2000000000)
    writer.add_uint64("test.u64", 2**63)
    writer.add_int64("test.i64", -5)
    writer.add_float32("test.f32", 0.5)
    writer.add_float64("test.f64", 0.1)
    writer.add_bool("test.bool", True)
    writer.add_array("test.strings", ["<s>", "", "▁the", "😀"])
    writer.add_array("test.floats", [0.0, -1.5])
    writer.add_array("test.ints", [1, -2])
    for i, name in enumerate(["F32", "Q4_0", "Q8_0", "BF16"]):
        values = rng.normal(0, 1, (2 + i, 64)).astype(np.float32)
        kind = gguf.GGMLQuantizationType[name]
        writer.add_tensor(f"test.{i}.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    rng = np.random.default_rng(1)
    out = {"source": f"gguf {__import__('importlib.metadata').metadata.version('gguf')} (PyPI), gguf.quants.dequantize"}
    for name in TYPES:
        data = blocks_of(name, rng)
        with np.errstate(all="ignore"):
            values = gguf.quants.dequantize(data.reshape(1, -1), gguf.GGMLQuantizationType[name]).astype("<f4")
        encode = lambda array: base64.b64encode(array.tobytes()).decode()
        out[name] = {"bytes": encode(data), "values": encode(values)}
    folder = pathlib.Path(__file__).parent.parent / "test" / "golden" / "quant"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "blocks.json").write_text(json.dumps(out, indent=1) + "\n")
    write_sample(folder / "sample.gguf", rng)
    reader = gguf.GGUFReader(folder / "sample.gguf")
    sums = {t.name: float(gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float64).sum()) for t in reader.tensors}
    (folder / "sample.json").write_text(json.dumps({"sums": sums}, indent=1) + "\n")


main()
