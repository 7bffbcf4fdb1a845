#!/usr/bin/env bash
# Collect what scripts/gpu_check.sh needs on a machine without a network, less than 60 MiB:
#   bash scripts/gpu_pack.sh OUT ENCODER DATA-BIN [PACKAGE...]
# ENCODER is a folder of scripts/get_pretrained.py, its weights are stored in fp16; DATA-BIN is binarized with its
# vocabulary. Packages are for Python 3.12 on x86-64: fairseq without its examples and alignments, and what a machine
# with PyTorch, transformers, sacrebleu, scikit-learn, pytest and hypothesis lacks. Name further ones, such as tokenizers.
set -euo pipefail
[ $# -ge 3 ] || { sed -n "2,6s/^# \{0,1\}//p" "$0" >&2; exit 2; }
root=$(cd "$(dirname "$0")/.." && pwd) out=$1 encoder=$2 data=$3
shift 3
[ -f "$encoder/model.safetensors" ] || { echo "error: there is no $encoder/model.safetensors" >&2; exit 1; }
[ -f "$data/train.src-tgt.src.bin" ] || { echo "error: there is no $data/train.src-tgt.src.bin" >&2; exit 1; }
mkdir -p "$out"/{wheels,encoder,data-bin}
python=${PYTHON:-python3}
constraints=(-c "$root/constraints.txt")

platforms=(--platform manylinux1_x86_64)
for glibc in 2014 _2_17 _2_27 _2_28; do platforms+=(--platform "manylinux${glibc}_x86_64"); done
"$python" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp "${platforms[@]}" \
    "${constraints[@]}" -d "$out/wheels" ve-fairseq hydra-core omegaconf bitarray array-api-compat "$@"
"$python" -m pip wheel -q --no-deps "${constraints[@]}" -w "$out/wheels" antlr4-python3-runtime

cp "$encoder"/{config.json,vocab.txt} "$out/encoder"
[ ! -f "$encoder/tokenizer_config.json" ] || cp "$encoder/tokenizer_config.json" "$out/encoder"
cp "$data"/dict.*.txt "$data"/{train,test}.src-tgt.* "$out/data-bin"
"$python" - "$out" "$encoder" <<'PYTHON'
import sys
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

from safetensors.torch import load_file, save_file

out, encoder = map(Path, sys.argv[1:])
weights = load_file(encoder / "model.safetensors")
halves = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
save_file(halves, out / "encoder" / "model.safetensors")
(wheel,) = (out / "wheels").glob("ve_fairseq-*.whl")
smaller = wheel.with_suffix(".part")
left_out = ("fairseq/examples/", "alignment_train", "fairseq/libbase.")
with ZipFile(wheel) as source, ZipFile(smaller, "w", ZIP_DEFLATED, compresslevel=9) as target:
    for name in source.namelist():
        content = source.read(name)
        if name.endswith("/RECORD"):
            content = b"".join(line for line in content.splitlines(True) if not line.decode().startswith(left_out))
        if not name.startswith(left_out):
            target.writestr(name, content)
smaller.rename(wheel)
PYTHON
du -shc "$out"/*
