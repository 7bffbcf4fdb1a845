"""``mist export``: a fairseq checkpoint made usable without fairseq's commands.

    mist export checkpoints/checkpoint_best.pt --data data-bin --to folder --out released --license mit
    mist export checkpoints/checkpoint_best.pt --data data-bin --to huggingface --out encoder
    mist export released --to onnx --out released-onnx --push org/name

folder: model.safetensors, config.json, dict.txt and a model card, for MistGenerator.from_pretrained and --pretrained.
huggingface: the encoder with its masked-LM head, for transformers.AutoModel.from_pretrained.
onnx: in fp32 and int8, or one of them (--precision), for OnnxGenerator, which needs neither fairseq nor torch.
A folder that was written by --to folder may take the checkpoint's place.
--push uploads what was written to the Hugging Face hub, from where the generators and --pretrained take it by its name.
"""

import argparse
import os
import sys


def main(arguments: list[str] | None = None) -> None:
    """Export what the command line names."""
    parser = argparse.ArgumentParser(
        prog="mist export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="fairseq checkpoint (.pt), or a folder of --to folder")
    parser.add_argument("--data", help="of a checkpoint: its data folder, if it is no longer where it was in training")
    parser.add_argument("--to", required=True, choices=["folder", "huggingface", "onnx"])
    parser.add_argument("--out", required=True, help="folder to write to")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    parser.add_argument("--precision", choices=["fp32", "int8"], help="of --to onnx (default: files of both)")
    parser.add_argument("--push", metavar="ORG/NAME", help="upload it there, too: needs huggingface_hub and a token")
    parser.add_argument("--private", action="store_true", help="make what --push makes private")
    card = parser.add_argument_group("model card of --to folder")
    card.add_argument("--name", help="its title (default: the folder's name)")
    card.add_argument("--training-data", default="Not told.", help="what the model was trained on")
    card.add_argument("--license", default="unknown", help="of the weights, such as mit (default: %(default)s)")
    card.add_argument("--language", default="", help="of the texts, such as en")
    card.add_argument("--notes", default="", help="a paragraph on intended use and limits")
    card.add_argument("--scores", nargs="*", help="what scripts/compare_decodings.py --out wrote")
    args = parser.parse_args(arguments)
    if args.private and not args.push:
        parser.error("--private is for --push")
    try:
        names = export(args)
        print(f"{args.out}: {', '.join(names)}")
        if args.push:
            from mist_fairseq.pretrained.hub import push_folder

            print(push_folder(args.out, args.push, names, args.private))
    except (ImportError, OSError, ValueError) as error:
        sys.exit(str(error))


def export(args: argparse.Namespace) -> list[str]:
    """Do what the command line says; the names of the files that were written."""
    from mist_fairseq.checkpoints.loading import load_checkpoint
    from mist_fairseq.release.folder import load_folder, save_folder
    from mist_fairseq.release.huggingface import save_huggingface
    from mist_fairseq.release.model_card import Description, model_card

    if not os.path.isdir(args.model):
        released, cfg, updates = load_checkpoint(args.model, args.data)
    elif args.to == "folder":
        raise ValueError(f"{args.model} is a folder: --to folder needs a checkpoint")
    else:
        released = load_folder(args.model)
    if args.to == "huggingface":
        return save_huggingface(released, args.out, args.overwrite)
    if args.to == "onnx":
        from mist_fairseq.release.onnx_folder import FILES, save_onnx

        return save_onnx(released, args.out, args.overwrite, [args.precision] if args.precision else list(FILES))
    name = args.name or os.path.basename(args.push or os.path.abspath(args.out))
    about = (args.training_data, args.license, args.language, args.notes, args.scores, args.push or "")
    description = Description(name, *about)
    text = model_card(description, released, cfg, updates)
    return save_folder(released, args.out, text, args.overwrite)
