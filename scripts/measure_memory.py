"""How much memory an exported folder takes, and how long to load, beside the size of its files.

    python scripts/measure_memory.py released-onnx --precision int8

Megabytes beyond what Python and ONNX Runtime take by themselves; pages of files that the system may drop at any time
count apart.
"""

import argparse
import sys
from pathlib import Path
from time import perf_counter


def resident() -> dict[str, float]:
    """Megabytes of memory and of files that are mapped into it."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[key].split()[0]) / 1000 for name, key in (("memory", "RssAnon"), ("files", "RssFile"))}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="what scripts/export.py --to onnx wrote")
    parser.add_argument("--precision", choices=["fp32", "int8"], default="fp32")
    parser.add_argument("--accelerate", choices=["auto", "native", "onnxruntime"], default="auto")
    parser.add_argument("--batch", type=int, default=1, help="sentences at a time (default: %(default)s)")
    args = parser.parse_args()
    import onnxruntime  # noqa: F401

    from mist_fairseq import OnnxGenerator
    from mist_fairseq.release.onnx_folder import FILES

    before = resident()

    def report(what):
        grown = {name: value - before[name] for name, value in resident().items()}
        print(f"{what}: {grown['memory']:.1f} MB, and {grown['files']:.1f} MB of files")

    size = sum((Path(args.folder) / name).stat().st_size for name in (*FILES[args.precision], "dict.txt"))
    print(f"files: {size / 1e6:.1f} MB")
    started = perf_counter()
    try:
        generator = OnnxGenerator.from_pretrained(args.folder, args.precision, threads=1, accelerate=args.accelerate)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    report(f"loaded in {perf_counter() - started:.2f} s")
    generator.generate(["how do i learn the guitar as fast as i can ?"] * 5 * args.batch, batch_size=args.batch)
    report("after five batches")


if __name__ == "__main__":
    main()
